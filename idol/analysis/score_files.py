"""Metrics of results files, with oracles, error shares and intervals.

Every video is read, matched and analysed by itself, in one of several processes, so that one holds
the masks of one video at a time, and what is kept of it is small.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from idol.analysis import causes as error_causes
from idol.analysis import intervals, oracles, shares
from idol.analysis.causes import VideoErrors
from idol.analysis.cores import in_order, usable_cores
from idol.analysis.intervals import Difference, Interval
from idol.analysis.oracles import OracleExperiments, VideoOracles
from idol.analysis.results_file import ResultsFile, with_results
from idol.analysis.shares import ErrorShares
from idol.arrays import Floats
from idol.config import AnalysisConfig
from idol.evaluation import average_precision, matching, tracking_metrics
from idol.evaluation.average_precision import Metrics
from idol.evaluation.matching import VideoMatches
from idol.evaluation.tracking_metrics import TrackingMetrics, TrackingOptions, VideoTracking
from idol.masks import rle
from idol.ytvis.truth import Truth, VideoTruth

TRACKING_SHOWN = ("HOTA", "DetA", "AssA", "LocA", "IDF1", "MOTSA", "sMOTSA", "IDSW", "Frag")
"""Tracking metrics in the table and the page, averaged over the classes that have truth."""
WORST_IN_JSON = 20
"""Worst videos and instances in the JSON object."""
_PROCESS_BYTES = 8 << 20  # of a results file; for less, starting processes takes longer
_COMPILE_BYTES = 6 << 20  # of a results file; for less, loading compiled code takes longer
_AHEAD = 16  # videos sent to each process before the first of them is done
_ANALYSIS_COST = 24  # of oracles and error shares: 13 s of one core for a MiB of results

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Analyses:
    """What is asked for besides average precision and recall."""

    oracle: tuple[int, ...] = ()
    """Clip lengths of oracle experiments; none: no experiments."""
    errors: bool = False
    """Error shares and the worst cases."""
    tracking: TrackingOptions | None = None
    """HOTA, CLEAR and identity metrics of entries as tracks; None: none."""
    compat: bool = False
    """Score malformed input as the official evaluator does."""
    config: AnalysisConfig = field(default_factory=AnalysisConfig)
    """Numbers of the analyses."""

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.oracle):
            raise ValueError(f"clip lengths are whole numbers from 1, got {min(self.oracle)}")
        if self.compat and (self.oracle or self.errors or self.tracking):
            raise ValueError(
                "--compat scores malformed input as the official evaluator does; analyses need "
                "well-formed input. Leave --compat away, and what is malformed will be named."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FileMetrics:
    """What was found of one results file.

    name:      how tables and pages call it
    intervals: metric -> interval over draws of the videos
    draws:     metric -> (B,) its value in each draw
    """

    name: str
    metrics: Metrics
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    draws: Mapping[str, Floats] = field(default_factory=dict)
    oracles: OracleExperiments | None = None
    errors: ErrorShares | None = None
    tracking: TrackingMetrics | None = None

    @property
    def shown_tracking(self) -> dict[str, float]:
        """The tracking metrics of tables and pages; none where they were not asked for."""
        if self.tracking is None:
            return {}
        return {name: self.tracking.present_averaged.values[name] for name in TRACKING_SHOWN}

    def to_dict(self) -> dict[str, Any]:
        """One JSON object, the metrics at its top."""
        values = self.metrics.to_dict()
        out = {**values.pop("stats"), **values}
        out["intervals"] = {k: [v.low, v.high] for k, v in self.intervals.items()}
        if self.oracles is not None:
            out["oracle"] = self.oracles.to_dict()
        if self.errors is not None:
            out["errors"] = self.errors.to_dict(WORST_IN_JSON)
        if self.tracking is not None:
            out["tracking"] = {**self.shown_tracking, **self.tracking.to_dict()}
        return out


class Compared(NamedTuple):
    """AP of one results file minus that of another."""

    first: str
    second: str
    found: Difference


@dataclass(frozen=True, slots=True)
class ScoredFiles:
    """What `run` found; differences are of the first file to every other."""

    truth: Truth
    files: list[FileMetrics]
    differences: list[Compared]

    def to_dict(self) -> dict[str, Any]:
        """One JSON object: the first file's at the top, and with several all under results."""
        written = {found.name: found.to_dict() for found in self.files}
        first = written[self.files[0].name]
        if len(written) == 1:
            return first
        gaps = [{"first": a, "second": b, "AP": asdict(found)} for a, b, found in self.differences]
        return {**first, "results": written, "differences": gaps}


def run(
    truth: Truth,
    paths: Mapping[str, Path],
    analyses: Analyses,
    *,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ScoredFiles:
    """Score every results file, with what is asked for.

    truth:    with masks
    paths:    name -> results file
    workers:  processes that share the videos of a large file; None: one for every core. They are
              spawned, so a script that calls this needs the usual `if __name__ == "__main__":`
    progress: called with a name, the videos done, and all videos
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry is malformed, or there is no video.
        IndexError: in compat mode, the results are empty.
    """
    cores = usable_cores() if workers is None else workers
    files: list[FileMetrics] = []
    for name, path in paths.items():
        try:
            files.append(_score(name, path, truth, analyses, cores, progress))
        except (ValueError, IndexError) as error:
            if len(paths) == 1:
                raise
            kind = IndexError if isinstance(error, IndexError) else ValueError
            raise kind(f"{path}: {error}") from error
    first = files[0]
    differences = []
    for second in files[1:]:
        if "AP" in first.intervals and "AP" in second.intervals:
            gap = first.metrics.stats["AP"] - second.metrics.stats["AP"]
            both = (first.draws["AP"], second.draws["AP"])
            found = intervals.difference(*both, gap, analyses.config)
            differences.append(Compared(first.name, second.name, found))
    return ScoredFiles(truth, files, differences)


def _score(
    name: str,
    path: Path,
    truth: Truth,
    analyses: Analyses,
    workers: int,
    progress: Callable[[str, int, int], None] | None,
) -> FileMetrics:
    def analysed(results: ResultsFile) -> list[_Part]:
        done = []
        for part in _parts(results, truth, analyses, workers):
            done.append(part)
            if progress is not None:
                progress(name, len(done), len(truth.videos))
        return done

    parts = with_results(path, truth, analysed, compat=analyses.compat)
    matches = [part.matches for part in parts]
    metrics = average_precision.summarise(matches)
    if metrics.missing_videos:
        missing = metrics.missing_videos
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        message = "%d of %d videos have no results in %s and are scored as empty: %s"
        _log.warning(message, len(missing), metrics.num_videos, path, shown)
    found, draws = intervals.intervals(matches, analyses.config)
    experiments = [part.oracles for part in parts if part.oracles is not None]
    causes = [part.causes for part in parts if part.causes is not None]
    counted = [part.tracking for part in parts if part.tracking is not None]
    return FileMetrics(
        name=name,
        metrics=metrics,
        intervals=found,
        draws=draws,
        oracles=oracles.summarise(experiments) if experiments else None,
        errors=shares.summarise(causes) if causes else None,
        tracking=tracking_metrics.summarise_tracking(counted) if counted else None,
    )


class _Part(NamedTuple):
    """What is kept of one video."""

    matches: VideoMatches
    oracles: VideoOracles | None = None
    causes: VideoErrors | None = None
    tracking: VideoTracking | None = None


def _part(results: ResultsFile, analyses: Analyses, known: VideoTruth) -> _Part:
    config, tracking = analyses.config, analyses.tracking
    tracks, where = results.tracks(known, config)
    matches = matching.match_video(tracks, known, where, compat=analyses.compat)
    experiments = causes = counts = None
    if analyses.oracle:
        predicted = oracles.prediction(*results.of(known.video_id), known, config)
        experiments = oracles.match_oracles(predicted, known, analyses.oracle, config)
    if analyses.errors:
        causes = error_causes.causes_of_video(tracks, where, known, config)
    if tracking is not None:
        counts = tracking_metrics.count_video(tracks, known, where, tracking)
    return _Part(matches, experiments, causes, counts)


def _parts(results: ResultsFile, truth: Truth, analyses: Analyses, workers: int) -> Iterator[_Part]:
    """Every video's part, in order of the truth; with several workers from all of them."""
    videos = truth.videos
    workers = min(workers, len(videos))
    size = results.path.stat().st_size
    part = partial(_part, results, analyses)
    overlaps_only = not (analyses.oracle or analyses.errors or analyses.tracking)
    if size > _COMPILE_BYTES:
        rle.compile_kernel()
    weight = _ANALYSIS_COST if analyses.oracle or analyses.errors else 1
    if workers < 2 or overlaps_only or weight * size <= _PROCESS_BYTES:
        if workers > 1 and overlaps_only and size > _COMPILE_BYTES:
            # Compiled code lets threads run side by side, and they start at once.
            with ThreadPoolExecutor(workers) as threads:
                yield from threads.map(lambda video_id: part(videos[video_id]), videos)
        else:
            yield from map(part, videos.values())
        return
    # Not forked: this process may have threads, and a lock that one of them holds stays locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (results, analyses))
    try:
        yield from in_order(pool, _part_of, videos.values(), _AHEAD * workers)
    finally:
        pool.shutdown(cancel_futures=True)


_work: list[Callable[[VideoTruth], _Part]] = []  # what a worker process does with a video


def _begin(results: ResultsFile, analyses: Analyses) -> None:
    """Prepare a worker process."""
    # Ctrl-C reaches every process; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if results.path.stat().st_size > _COMPILE_BYTES:
        rle.compile_kernel()
    _work.append(partial(_part, results, analyses))


def _part_of(known: VideoTruth) -> _Part:
    return _work[-1](known)
