"""A Python process that listens to Ctrl-C, also where the tests run in the background."""

import sys

# A shell without job control starts background commands with SIGINT ignored, all that they start
# inherits it, and Python then installs no handler.
_LISTEN = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def foreground(*arguments: str) -> list[str]:
    """The command `python ARGUMENTS`, with the default action for SIGINT."""
    return [sys.executable, "-c", _LISTEN, *arguments]
