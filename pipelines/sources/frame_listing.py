"""Which frame files a dataset has: a fingerprint that a copy elsewhere keeps, others do not."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from idol.spool import Spool
from pipelines.sources import frames
from pipelines.storage import paths

_SAMPLE = 256  # files of which bytes are read
_BLOCK, _BLOCKS = 2**16, 4  # of each: a video file has gigabytes
_HELD = 8  # listed folders in memory; the others are in a file
_THREADS = 16  # object storage takes 50 ms and more to answer


class FrameListing:
    """The frame files below a root; every folder is listed once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._listed: Spool[dict[str, int]] = Spool()
        self._places: dict[str, int] = {}
        self._held: dict[str, dict[str, int]] = {}

    def bytes_of(self, path: str) -> int | None:
        """Of a file; None: there is no such file."""
        folder, _, name = path.rpartition("/")
        found = self._held.get(folder)
        return (self._files(folder) if found is None else found).get(name)

    def _files(self, folder: str) -> dict[str, int]:
        if folder not in self._places:
            self._listed.append(frames.files_in(folder))
            self._places[folder] = len(self._listed) - 1
        if len(self._held) == _HELD:
            del self._held[next(iter(self._held))]
        self._held[folder] = self._listed[self._places[folder]]
        return self._held[folder]

    def fingerprint(self, references: Callable[[], Iterable[str]]) -> str:
        """Names the files of frame references, all of which exist, as text of one line.

        From the names relative to the root and the sizes of all files, and from up to four blocks
        of 64 KiB, spread evenly, of each file of a sample of 256. So of more files, or larger ones,
        a change that keeps every size may go unseen.

        references: called twice; each makes the same references one after the other
        """
        # Where each file is named first: by hashes, for all names would take too much memory.
        hashes = np.fromiter(map(hash, _paths(references())), np.int64)
        places = np.sort(np.unique(hashes, return_index=True)[1])
        del hashes
        sampled = places[np.random.default_rng(0).permutation(len(places))[:_SAMPLE]].tolist()
        digest, total, named = hashlib.sha256(), 0, enumerate(_paths(references()))
        sample = dict.fromkeys(sampled, ("", 0))
        for place in places:
            path = next(path for number, path in named if number == place)
            size = self.bytes_of(path) or 0
            digest.update(f"{path.removeprefix(self.root).lstrip('/')}\0{size}\0".encode())
            total += size
            if place in sample:
                sample[place] = path, size
        with ThreadPoolExecutor(_THREADS) as pool:
            for content in pool.map(blocks, *zip(*sample.values(), strict=True)):
                digest.update(hashlib.sha256(content).digest())
        return f"{len(places)} files of {total} bytes ({digest.hexdigest()[:16]})"


def _paths(references: Iterable[str]) -> Iterator[str]:
    """The files, each once where a video file follows itself."""
    paths = (frames.split(reference)[0] for reference in references)
    return (path for path, _ in itertools.groupby(paths))


def blocks(path: str, size: int) -> bytes:
    """A few blocks of a file, first and last included; of a file that cannot be read, nothing."""
    starts = np.unique(np.linspace(0, max(0, size - _BLOCK), _BLOCKS, dtype=np.int64)).tolist()
    try:
        with paths.open_input(path) as file:
            return b"".join(file.read_at(_BLOCK, start) for start in starts)
    except OSError:
        return b""
