"""Commands: flags in, one call of a pipeline, one line of JSON out."""

import os
import sys
from types import TracebackType

INTERRUPTED = 130
"""The exit status of what Ctrl-C has ended, by the convention of shells."""


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("\nInterrupted.", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


if sys.argv[:1] == ["-m"]:  # python -m jobs.NAME, before command.run takes over
    sys.excepthook = _hook
