"""The steps of deploy/Dockerfile, one by one in a clean Debian, and the demo in what they make.

python -m benchmarks.image --root /var/tmp/idol-image --find-links /opt/wheels

As root, where no base image can be pulled. `debootstrap` makes the Debian; the base image's Python
is Debian's of the same version in an environment of its own; then every ENV, RUN, WORKDIR, COPY and
USER of the target is done in the chroot as it stands. Prints a row for each step. A step that was
done before, with the same text, in the same root, is not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import machine

ROOT = Path(__file__).resolve().parent.parent
_PYTHON = "/opt/python"
_BASE = (
    "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv",
    f"python3 -m venv {_PYTHON}",
)
"""What python:3.11-slim-bookworm has beside Debian."""
_DEMO = "python -m jobs.demo --out /tmp/demo --train-videos 8 --validation-videos 4"
_LINKS = "/mnt/wheels"


@dataclass
class Image:
    """A root folder, and what the steps so far have said of the next ones."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    done: str = ""

    def run(self, command: str) -> int:
        """A shell command inside; its exit status."""
        known = {"PATH": f"{_PYTHON}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        if self.user != "root":
            known["HOME"] = f"/home/{self.user}"
        words = ["chroot", f"--userspec={self.user}", str(self.root), "/bin/sh", "-ec"]
        inside = f"cd {self.folder} && {command}"
        with (self.root.parent / f"{self.root.name}.log").open("ab") as log:
            done = subprocess.run(
                [*words, inside], env={**known, **self.variables}, stdout=log, stderr=log
            )
        return done.returncode

    def copy(self, words: Sequence[str]) -> int:
        """COPY [--chown=USER:GROUP] SOURCE... TARGET"""
        owner = next((w.partition("=")[2] for w in words if w.startswith("--chown=")), "")
        *sources, target = (w for w in words if not w.startswith("--"))
        for source in sources:
            place = self.root / self.folder.lstrip("/") / target
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.nb[ic]")
                shutil.copytree(ROOT / source, place, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy(ROOT / source, place)
            if owner:
                self.run(f"chown -R {owner} {shlex.quote(target)}")
        return 0


def steps(text: str, target: str) -> Iterator[tuple[str, str]]:
    """(instruction, arguments) of a target and of the stages that it is made from."""
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            source, _, name = rest.split()
            stages[name] = list(stages.get(source, []))
        elif word and name:
            stages[name].append((word, rest.strip()))
    yield from stages[target]


def main(argv: Sequence[str] | None = None) -> None:
    """Do every step, then the demo; exit with 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--target", default="cpu")
    parser.add_argument(
        "--find-links", type=Path, help="a folder of wheels, such as of torch's CPU build"
    )
    parser.add_argument("--steps-only", action="store_true", help="leave out the demo")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    options = parser.parse_args(argv)
    image = Image(options.root)
    wanted = list(steps((ROOT / "deploy" / "Dockerfile").read_text(), options.target))
    print(machine.header(machine.command("benchmarks.image")))
    print("| step | seconds |\n|---|---|")
    if not (options.root / "bin").exists():
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm"]
        command += [str(options.root), options.mirror]
        row("debootstrap", lambda: subprocess.call(command, stdout=sys.stderr))
    with mounted(options.root, options.find_links):
        for command in _BASE:
            once(image, "base image", command)
        if options.find_links:
            image.variables["PIP_FIND_LINKS"] = _LINKS
        for word, rest in wanted:
            if word == "ENV":
                image.variables |= dict(part.split("=", 1) for part in shlex.split(rest))
            elif word == "WORKDIR":
                image.folder = rest
                (options.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif word == "USER":
                image.user = rest
            elif word == "COPY":
                row(f"COPY {rest}", partial(image.copy, shlex.split(rest)))
            elif word == "RUN":
                once(image, "RUN", rest)
        if options.steps_only:
            return
        row(f"as {image.user}: {_DEMO}", lambda: image.run(_DEMO))


def once(image: Image, title: str, command: str) -> None:
    """Run a command unless it, and all before it, were run in this root already."""
    image.done = hashlib.sha256(f"{image.done}\n{command}".encode()).hexdigest()
    mark = image.root / "var" / f"step-{image.done[:16]}"
    if not mark.exists():
        row(f"{title} {command}", lambda: image.run(command))
        mark.touch()


def row(title: str, work: Callable[[], int]) -> None:
    """Do a step and print it; the end of all where it fails."""
    began = time.monotonic()
    status = work()
    told = " ".join(title.split())
    short = told if len(told) < 100 else f"{told[:97]}..."
    print(f"| `{short}` | {time.monotonic() - began:.1f} |", flush=True)
    if status:
        sys.exit(f"it ended with status {status}")


@contextlib.contextmanager
def mounted(root: Path, links: Path | None) -> Iterator[None]:
    """What a container's runtime brings: /proc, /dev, names of hosts, certificates."""
    places = [("/proc", "proc"), ("/dev", "dev"), ("/etc/ssl/certs", "etc/ssl/certs")]
    places += [(str(links), _LINKS.lstrip("/"))] * (links is not None)
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    try:
        for source, inside in places:
            (root / inside).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", source, str(root / inside)], check=True)
            subprocess.run(["mount", "--make-rslave", str(root / inside)], check=True)
        yield
    finally:
        for _, inside in reversed(places):
            subprocess.run(["umount", "-l", str(root / inside)], check=False)


if __name__ == "__main__":
    main()
