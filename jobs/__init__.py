"""Commands: flags in, one call of a pipeline, one line of JSON out.

`python -m jobs.VERB ...` is `idol VERB ...`, which is `main` here.
"""

import ast
import dataclasses
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

INTERRUPTED = 130
"""The exit status of what Ctrl-C has ended, by the convention of shells."""

VERBS = (
    *("demo", "track", "check", "convert", "prepare", "train", "evaluate", "sweep"),
    *("serve", "score", "report", "export", "submit"),
)
"""In the order in which a user meets them."""

USAGE = 2
"""The exit status of a mistyped command line, as of tyro and argparse."""

SHELLS = ("bash", "zsh", "fish")


def likely(word: str, known: Iterable[str], dashes: str = "") -> str:
    """The hint "Did you mean X? " with the nearest known word; "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {dashes}{near[0]}? " if near else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job that the first word names with the words after it; argv: None: the process's."""
    # As of python -m, so that --tracker finds a module there; last, so that it hides none.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ("",)
    if verb in VERBS:
        importlib.import_module(f"jobs.{verb}").main(rest)
    elif verb in TOOLS:
        try:
            TOOLS[verb][1](rest)
            sys.stdout.flush()
        except BrokenPipeError:  # it went to a pager that was left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif verb in ("-h", "--help"):
        print(_overview())
    else:
        told = f"there is no command {verb!r}. {likely(verb, [*VERBS, *TOOLS])}" if verb else ""
        _usage(f"{told}`idol --help` lists all.")


def _usage(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(USAGE)


def _overview() -> str:
    """A line for every job, the first of its docstring: importing them all would take seconds."""
    lines = ["usage: idol COMMAND ...", ""]
    for verb in VERBS:
        tree = ast.parse(Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").splitlines()[0]
        lines.append(f"  {verb:10} {first.partition(': `')[0]}")
    lines += ["", *(f"  {name:10} {about}" for name, (about, _) in TOOLS.items())]
    return "\n".join([*lines, "", "`idol COMMAND --help` lists the options of one."])


def _models(words: Sequence[str]) -> None:
    from idol.weights import zoo

    print("usage: idol models\n" if words else zoo.table())
    if not words:
        print(
            "\nAP: on the validation videos of what it was trained on, as the authors publish it.\n"
            "megabytes: of the tensors; the file can be larger, and its size is told before a\n"
            "download. Give a name to --weights, or to idol.load."
        )


def _config(words: Sequence[str]) -> None:
    """List the fields of the sections that words name, those of a preset after --preset."""
    from idol import presets
    from idol.config import Config, describe

    names, preset = list(words), "ytvis19_r50"
    if "--preset" in names:
        place = names.index("--preset")
        preset = "".join(names[place + 1 : place + 2])
        del names[place : place + 2]
    try:
        config: Config = presets.by_name(preset)
    except ValueError as error:
        _usage(str(error))
    found = describe.sections(config)
    if not names or names[0] in ("-h", "--help"):
        print("usage: idol config SECTION ... [--preset NAME]\n")
        for name, part in found.items():
            about = " ".join((type(part).__doc__ or "").split())
            first = re.split(r"(?<!Sec)\. ", about)[0].removesuffix(".")
            print(f"  {name:15} {first}.")
        print(f"\nDefaults are those of preset {preset}; --set SECTION.FIELD=VALUE replaces one.")
        return
    for name in names:
        if name not in found:
            _usage(f"there is no section {name!r}. {likely(name, found)}`idol config` lists all.")
        fields = (one.text() for one in describe.described(name, found[name]))
        print("\n".join(fields))


def _completion(words: Sequence[str]) -> None:
    """Print the script that completes commands and options in a shell."""
    if list(words) not in [[shell] for shell in SHELLS]:
        _usage(f"usage: idol completion {'|'.join(SHELLS)}, for example in ~/.bashrc: "
               'eval "$(idol completion bash)"')  # fmt: skip
    known = {verb: " ".join(_options(verb)) for verb in VERBS}
    commands = " ".join([*VERBS, *TOOLS])
    if words[0] == "fish":
        print(f"complete -c idol -n __fish_use_subcommand -f -a '{commands}'")
        for verb, options in known.items():
            for option in options.split():
                seen = f"'__fish_seen_subcommand_from {verb}'"
                print(f"complete -c idol -n {seen} -l {option.removeprefix('--')}")
        return
    cases = "\n".join(f'    {verb}) words="{options}" ;;' for verb, options in known.items())
    bash = f"""_idol() {{
  local words="{commands}" word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _idol idol"""
    print(bash if words[0] == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{bash}")


def _options(verb: str) -> list[str]:
    """The options of a job: the fields of the class that has its name."""
    options = getattr(importlib.import_module(f"jobs.{verb}"), verb.capitalize())
    names = (one.name.rstrip("_").replace("_", "-") for one in dataclasses.fields(options))
    return [f"--{name}" for name in (*names, "help")]


TOOLS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "models": ("List the trained weights that have a name.", _models),
    "config": ("List the fields that --set takes, by section: meaning, default, limits.", _config),
    "completion": ("Print what completes commands and options in bash, zsh or fish.", _completion),
}
"""Commands that run no job: what each does, and how."""


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("\nInterrupted.", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


# Threads of libgomp that wait spin, and take the core from whoever works: beside a busy process on
# two cores a frame of the tiny network took two threads 0.22 s, without spinning 0.03. A ResNet-50
# does not gain by it. Read when torch is loaded, which is later.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

if sys.argv[:1] == ["-m"]:  # python -m jobs.NAME, before command.run takes over
    sys.excepthook = _hook
