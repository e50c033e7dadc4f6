"""How every job begins and ends, and the options that several jobs take.

A job imports at its top what its options need, and the rest when its work begins, so that --help
and a mistyped option are answered within a second.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from jobs import INTERRUPTED, places
from pipelines.errors import PipelineError, origin

Options = TypeVar("Options")

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag without a --no- form."""
Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""An option that is given once for each value."""
AnnotationFiles = Annotated[tuple[str, ...], tyro.conf.arg(metavar="JSON [JSON ...]")]
Weights = Annotated[
    str,
    tyro.conf.arg(
        help="A .safetensors of jobs.train, `shipped` for the tiny weights in this package, or a "
        "released .pth (then name its --preset)."
    ),
]
Tracker = Annotated[
    str | None,
    tyro.conf.arg(
        help="released, ovis, paper, multi_cue, robust, or a JSON file such as the best.json of "
        "jobs.sweep. Default: the checkpoint's own."
    ),
]
Frames = Annotated[
    str | None,
    tyro.conf.arg(
        help="Folder (or URL) that the frame paths are relative to. Default: JPEGImages beside "
        "each annotation file where that exists, else the file's own folder."
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
) -> None:
    """Parse the command line, check its places, do the work, print its outcome as a line of JSON.

    An error of the caller ends the job with status 1 and its message, Ctrl-C with status 130; both
    add the error's notes. A traceback would bury what the message says to do.

    work: returns the last line, or None where it has printed it
    argv: None: that of the process
    also: errors that are the caller's, beside PipelineError, ValueError and OSError
    """
    job = tyro.cli(options, args=argv, prog=f"python -m jobs.{name}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
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
    if line is not None:
        print(json.dumps(line, sort_keys=True))


def _with_notes(message: str, error: BaseException) -> str:
    return " ".join([message, *getattr(error, "__notes__", ())])
