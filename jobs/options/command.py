"""How every job begins and ends, and the options that several jobs take.

A job imports at its top what its options need, and the rest when its work begins, so that --help
and a mistyped option are answered within a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from idol.addresses import without_secrets
from jobs import INTERRUPTED, USAGE, likely
from jobs.options import places
from pipelines.errors import PipelineError, origin

if TYPE_CHECKING:
    from pipelines.plan import Stage

Options = TypeVar("Options")

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag without a --no- form."""
Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""An option that is given once for each value."""
AnnotationFiles = Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABELS [LABELS ...]")]
WEIGHTS = tyro.conf.arg(
    help="A name of `idol models`, a .safetensors of jobs.train, `shipped` for the tiny weights in "
    "this package, or a released .pth (then name its --preset)."
)
Weights = Annotated[str, WEIGHTS]
Tracker = Annotated[
    str | None,
    tyro.conf.arg(
        help="released, ovis, paper, multi_cue, robust, package.module:Class, or a JSON file such "
        "as the best.json of jobs.sweep. Default: the checkpoint's own."
    ),
]
Frames = Annotated[
    str | None,
    tyro.conf.arg(
        help="Folder (or URL) that the frame paths are relative to. Default: as the format of the "
        "labels has it; of JSON JPEGImages beside the file where that exists, else its folder."
    ),
]
Device = Annotated[str, tyro.conf.arg(metavar="auto|cpu|gpu|cuda[:N]")]
"""Where the network runs: read by `device`."""
RejectLimit = Annotated[
    float | None,
    tyro.conf.arg(
        help="Share of the videos that may have a fault before the job fails. Default: 0.1."
    ),
]
DryRun = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(
        help="Do nothing but read the input and print the plan: stages, shards, CPUs and GPUs, "
        "and a guess of time and bytes."
    ),
]
NumCpus = Annotated[
    int | None,
    tyro.conf.arg(
        help="Logical CPUs of the Ray started here. Default: those of the machine, at least 4. "
        "Without effect on a cluster that is joined (RAY_ADDRESS, ray job submit)."
    ),
]


def run(
    name: str,
    options: type[Options],
    work: Callable[[Options], Mapping[str, Any] | None],
    argv: Sequence[str] | None = None,
    *,
    also: tuple[type[Exception], ...] = (),
    table: bool = True,
) -> None:
    """Parse the command line, check its places, do the work, print its outcome: a table for people
    on stderr, and as the last line of stdout one JSON object (see pipelines.report.summary).

    An error of the caller ends the job with status 1 and its message, Ctrl-C with status 130; both
    add the error's notes. A traceback would bury what the message says to do. Where a part failed,
    which the line counts as "failures", the status is 1 too.

    work: returns the last line, or None where it has printed it; what its "whole" names is a file
          that has everything, for a line that is too long
    argv: None: that of the process
    also: errors that are the caller's, beside PipelineError, ValueError and OSError
    table: False: the job has printed its own
    """
    words = sys.argv[1:] if argv is None else argv
    _check_names(f"python -m jobs.{name}", options, words)
    try:
        job = tyro.cli(options, args=words, prog=f"python -m jobs.{name}")
    except BrokenPipeError:  # the help went to a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    _set_up_stderr()
    callers: tuple[type[Exception], ...] = (PipelineError, ValueError, OSError, *also)
    try:
        places.check(job)
        line = work(job)
    except KeyboardInterrupt as error:
        print("\n" + _with_notes("Interrupted.", error), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        told = origin(error)
        if not isinstance(told, callers):
            raise
        sys.exit(_with_notes(f"{type(told).__name__}: {told}", error))
    if line is None:
        return
    from pipelines.report import summary

    if table:
        print(summary.table(line), file=sys.stderr)
    print(summary.last_line(line, name))
    if line.get("failures"):
        sys.exit(1)


def planned(stages: Sequence[Stage], *out: object) -> dict[str, Any]:
    """The last line of a dry run, which would write to `out`, after the plan on stderr."""
    from pipelines import plan

    print(plan.table(stages), file=sys.stderr)
    return plan.told(stages, map(str, out))


def device(text: str) -> tuple[bool | None, int | None]:
    """Whether a --device is a GPU, and which; None where it does not say.

    Raises: ValueError: it is none of Device's words.
    """
    found = re.fullmatch(r"(auto)|(cpu)|(?:gpu|cuda)(?::(\d{1,4}))?", text)
    if found is None:
        raise ValueError(f"--device must be auto, cpu, gpu, cuda or cuda:N, got {text!r}")
    auto, cpu, number = found.groups()
    return None if auto else not cpu, None if number is None else int(number)


def _check_names(program: str, options: type[Any], words: Sequence[str]) -> None:
    """Name a mistyped option and the nearest; tyro asks for the one that was meant instead."""
    known = ["help", *(f.name.rstrip("_").replace("_", "-") for f in dataclasses.fields(options))]
    for word in itertools.takewhile(lambda word: word != "--", words):
        given = word.partition("=")[0].replace("_", "-")[2:]
        if not word.startswith("--") or given.removeprefix("no-") in known:
            continue
        hint = likely(given, known, "--")
        message = f"there is no option --{given}. {hint}`{program} --help` lists all."
        print(message, file=sys.stderr)
        sys.exit(USAGE)


def _with_notes(message: str, error: BaseException) -> str:
    return without_secrets(" ".join([message, *getattr(error, "__notes__", ())]))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _set_up_stderr() -> None:
    """Log warnings, and show no secrets of addresses in them or in the traceback of a bug."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.root.handlers:
        handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        print(without_secrets(text), end="", file=sys.stderr)

    sys.excepthook = show
