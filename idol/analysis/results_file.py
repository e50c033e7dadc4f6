"""Results files of whole tracks or of clips: short names, and the entries of each video."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from idol.analysis import clips
from idol.config import AnalysisConfig
from idol.ytvis import results as results_file
from idol.ytvis.index import ResultsIndex
from idol.ytvis.lazy_rows import UnusualLayout
from idol.ytvis.results import Entry
from idol.ytvis.truth import Truth, VideoTruth

_log = logging.getLogger(__name__)

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """One results file, its entries by video.

    categories: ids that the entries may have
    clips:      whether the entries are clip predictions (`clips.py`)
    index:      reads a video's entries from the file; None: entries holds all of them
    rows:       video_id -> positions of its entries in the whole file
    """

    path: Path
    categories: tuple[int, ...]
    clips: bool = False
    index: ResultsIndex | None = None
    entries: Sequence[Entry] = ()
    rows: dict[int, list[int]] = field(default_factory=dict)

    def of(self, video_id: int) -> tuple[list[Entry], list[int]]:
        """The entries of a video of the truth, and their positions in the file.

        Raises:
            UnusualLayout: the file must be read as a whole.
            ValueError: a category is not in the truth; the message has the entry's position.
        """
        if self.index is None:
            rows = self.rows[video_id]
            return [self.entries[i] for i in rows], rows
        entries, rows = self.index.of(video_id)
        for row, entry in zip(rows, entries, strict=True):
            results_file.check_ids(entry, row, (video_id,), self.categories, compat=False)
        return entries, rows

    def tracks(self, truth: VideoTruth, config: AnalysisConfig) -> tuple[list[Entry], list[int]]:
        """As `of`, with clips joined to whole tracks, which are counted from 0."""
        entries, rows = self.of(truth.video_id)
        if not self.clips:
            return entries, rows
        joined = clips.join(entries, rows, truth, config)
        return joined, list(range(len(joined)))


def read_results(path: Path, truth: Truth, *, compat: bool = False) -> ResultsFile:
    """Read a results file, or clip predictions, that no index can be made of.

    compat: accept malformed entries as the official evaluator does
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry is malformed; the message has its position.
        IndexError: in compat mode, the results are empty.
    """
    entries = results_file.read(path)
    if compat and not entries:
        raise IndexError("list index out of range: the official evaluator refuses empty results")
    as_clips = clips.are_clips(entries)
    if as_clips and compat:
        raise ValueError(
            "the official evaluator knows no clips, so --compat cannot score them. Leave it away, "
            "or join the clips first with --join joined.json"
        )
    rows: dict[int, list[int]] = {video_id: [] for video_id in truth.videos}
    for number, entry in enumerate(entries):
        if not truth.leaves_out(entry):
            results_file.check_ids(entry, number, truth.videos, truth.categories, compat=compat)
            rows[entry["video_id"]].append(number)
    return ResultsFile(path, tuple(truth.categories), as_clips, entries=entries, rows=rows)


def with_results(
    path: Path, truth: Truth, work: Callable[[ResultsFile], Made], *, compat: bool = False
) -> Made:
    """What `work` makes of a results file, which is read video by video where its layout allows.

    Where it does not (clips, compat, unusual JSON), work is called with the whole file instead,
    also after it has begun. Errors as of `read_results`, all with the file's name.
    """
    try:
        if not compat:
            try:
                index = ResultsIndex(path)
                index.check_videos([*truth.videos, *truth.left_out], truth.categories)
                return work(ResultsFile(path, tuple(truth.categories), index=index))
            except UnusualLayout as error:
                _log.debug("%s is read as a whole: %s", path, error)
        return work(read_results(path, truth, compat=compat))
    except ValueError as error:
        # One of several files: an entry's position alone does not say of which.
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def join(truth: Truth, path: Path, out: Path, config: AnalysisConfig) -> int:
    """Write clip predictions as whole tracks, joined by clip matching; returns their number.

    Raises:
        ValueError: path holds no clip predictions; also as of `read_results`.
    """
    results = read_results(path, truth)
    if not results.clips:
        raise ValueError(
            f"{path} has no clip predictions to join: no entry has a 'first_frame'. Entries of "
            "clips say in which frame their clip starts."
        )
    joined = (results.tracks(video, config)[0] for video in truth.videos.values())
    return results_file.write(out, itertools.chain.from_iterable(joined))


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for every results file, all different.

    A file called results.json is named by its folder, any other by its own name. Where folders at
    the end of all paths are the same, the first that differs is the name; where names still are
    equal, folders above are added, and at last a number.
    """
    parts = [
        (p.parent if p.stem == "results" else p.with_suffix("")).parts
        for p in (path.resolve() for path in paths)
    ]
    while len(set(parts)) > 1 and all(len(p) > 2 and p[-1] == parts[0][-1] for p in parts):
        parts = [p[:-1] for p in parts]
    depth = [1] * len(parts)
    names = [p[-1] for p in parts]
    while clash := [
        k for k, n in enumerate(names) if names.count(n) > 1 and depth[k] < len(parts[k]) - 1
    ]:
        for k in clash:
            depth[k] += 1
            names[k] = "/".join(parts[k][-depth[k] :])
    out: list[str] = []
    for k, base in enumerate(names):
        # The same file again: its shortest name with a number.
        again = sum(p == parts[k] for p in parts[:k])
        short = parts[k][-1] if parts.count(parts[k]) == len(parts) else base
        out.append(f"{short}-{again + 1}" if again else short)
    return out
