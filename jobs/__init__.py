"""Commands: flags in, one call of a pipeline, one line of JSON out.

`python -m jobs.VERB ...` is `idol VERB ...`, which is `main` here.
"""

import ast
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

INTERRUPTED = 130
"""The exit status of what Ctrl-C has ended, by the convention of shells."""

VERBS = (
    *("demo", "track", "check", "convert", "prepare", "train", "evaluate", "sweep"),
    *("score", "report", "export", "submit"),
)
"""In the order in which a user meets them."""

USAGE = 2
"""The exit status of a mistyped command line, as of tyro and argparse."""


def likely(word: str, known: Iterable[str], dashes: str = "") -> str:
    """The hint "Did you mean X? " with the nearest known word; "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {dashes}{near[0]}? " if near else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job that the first word names with the words after it; argv: None: the process's."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ("",)
    if verb in VERBS:
        importlib.import_module(f"jobs.{verb}").main(rest)
        return
    if verb in ("-h", "--help"):
        print(_overview())
        return
    told = f"there is no command {verb!r}. {likely(verb, VERBS)}" if verb else ""
    print(f"{told}`idol --help` lists all.", file=sys.stderr)
    sys.exit(USAGE)


def _overview() -> str:
    """A line for every job, the first of its docstring: importing them all would take seconds."""
    lines = ["usage: idol COMMAND ...", ""]
    for verb in VERBS:
        tree = ast.parse(Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").splitlines()[0]
        lines.append(f"  {verb:9} {first.partition(': `')[0]}")
    return "\n".join([*lines, "", "`idol COMMAND --help` lists the options of one."])


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("\nInterrupted.", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


if sys.argv[:1] == ["-m"]:  # python -m jobs.NAME, before command.run takes over
    sys.excepthook = _hook
