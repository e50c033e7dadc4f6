"""What stands above every table: a figure is worth nothing without it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def header(command: str, device: str = "cpu") -> str:
    """Machine, versions, commit and command, as lines of text.

    command: as the user typed it
    device:  cpu or cuda
    """
    where = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    commit = (
        os.environ.get("COMMIT")
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    )
    return (
        f"machine: {where}\n"
        f"versions: Python {platform.python_version()}, torch {torch.__version__}, "
        f"commit {commit or 'unknown'}\n"
        f"command: {command}\n"
    )


def command(module: str) -> str:
    """How this program was started, absolute paths cut to their last two parts: where a machine
    keeps its data says nothing about a figure."""
    words = [
        "/".join(Path(word).parts[-2:]) if Path(word).is_absolute() else word
        for word in sys.argv[1:]
    ]
    return shlex.join(["python", "-m", module, *words])


def _cpu() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
