"""Which frame files a dataset has: a fingerprint that a copy elsewhere keeps, others do not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.sources import frames
from pipelines.storage import paths

_SAMPLE = 256  # files of which bytes are read
_BLOCK, _BLOCKS = 2**16, 4  # of each: a video file has gigabytes
_THREADS = 16  # object storage takes 50 ms and more to answer


class FrameListing:
    """The frame files below a root; every folder is listed once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._folders: dict[str, dict[str, int]] = {}

    def bytes_of(self, path: str) -> int | None:
        """Of a file; None: there is no such file."""
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = frames.files_in(folder)
        return self._folders[folder].get(name)

    def fingerprint(self, references: Iterable[str]) -> str:
        """Names the files of these frame references, all of which exist, as text of one line.

        From the names relative to the root and the sizes of all files, and from up to four blocks
        of 64 KiB, spread evenly, of each file of a sample of 256. So of more files, or larger ones,
        a change that keeps every size may go unseen.
        """
        files = {path: self.bytes_of(path) or 0 for path in _paths(references)}
        digest = hashlib.sha256()
        for path, size in files.items():
            digest.update(f"{path.removeprefix(self.root).lstrip('/')}\0{size}\0".encode())
        order = np.random.default_rng(0).permutation(len(files))[:_SAMPLE]
        paths = list(files)
        with ThreadPoolExecutor(_THREADS) as pool:
            for content in pool.map(lambda i: blocks(paths[i], files[paths[i]]), order):
                digest.update(hashlib.sha256(content).digest())
        return f"{len(files)} files of {sum(files.values())} bytes ({digest.hexdigest()[:16]})"


def _paths(references: Iterable[str]) -> Iterator[str]:
    return (frames.split(reference)[0] for reference in references)


def blocks(path: str, size: int) -> bytes:
    """A few blocks of a file, first and last included; of a file that cannot be read, nothing."""
    starts = np.unique(np.linspace(0, max(0, size - _BLOCK), _BLOCKS, dtype=np.int64)).tolist()
    try:
        with paths.open_input(path) as file:
            return b"".join(file.read_at(_BLOCK, start) for start in starts)
    except OSError:
        return b""
