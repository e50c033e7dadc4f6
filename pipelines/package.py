"""The package of code that travels with a job: what is in it, and how large it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import PipelineError

_ENTRY_BYTES = 256  # of the archive around each file: two headers, and its name twice
_LARGEST = 5  # files that the error names
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Package:
    """What Ray would send of a folder.

    files:    how many
    bytes:    of the archive, which Ray does not compress
    limit:    what a job server takes
    left_out: what stays behind, sorted; of a folder that stays whole, its name and a slash
    largest:  the largest files that would be sent: (path in the folder, bytes)
    """

    files: int
    bytes: int
    limit: int
    left_out: tuple[str, ...]
    largest: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        without = f"; {', '.join(self.left_out)} stay here" if self.left_out else ""
        return f"{self.files} files, {self.bytes / _MIB:.1f} MiB{without}"


def of(folder: Path) -> Package:
    """What Ray would send of this folder, by the rules of its own packer."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    files: dict[Path, int] = {}
    folder = folder.absolute()

    def handle(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder)] = path.stat().st_size

    defaults = packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())
    quiet = logging.Logger("package", logging.ERROR)
    # Ray's own switch for packages that git ignores, read as its client reads it.
    use_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excludes: list[Callable[[Path], bool]] = [defaults]
    packaging._dir_travel(folder, excludes, handle, include_gitignore=use_gitignore, logger=quiet)
    # Ray visits a folder of which it takes nothing, too.
    tops = {path.parts[0] for path in files}
    left = [path for path in folder.iterdir() if path.name not in tops and _holds(path)]
    largest = sorted(files.items(), key=lambda entry: -entry[1])[:_LARGEST]
    return Package(
        files=len(files),
        bytes=sum(size + _ENTRY_BYTES for size in files.values()),
        limit=min(ray_constants.DASHBOARD_CLIENT_MAX_SIZE, packaging.GCS_STORAGE_MAX_SIZE),
        left_out=tuple(sorted(path.name + "/" * path.is_dir() for path in left)),
        largest=tuple((str(path), size) for path, size in largest),
    )


def _holds(path: Path) -> bool:
    return path.is_file() or next(path.iterdir(), None) is not None


def check(folder: Path) -> Package:
    """What would be sent. Raises: PipelineError: it is no folder, or more than a server takes."""
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder, so its code cannot be sent.")
    package = of(folder)
    if package.bytes > package.limit:
        named = ", ".join(f"{path} ({size / _MIB:.1f} MiB)" for path, size in package.largest)
        raise PipelineError(
            f"{folder} would be a package of {package.bytes / _MIB:.0f} MiB, but a job server "
            f"takes {package.limit / _MIB:.0f}. Name data and outputs in .rayignore; the largest "
            f"files are {named}."
        )
    return package
