"""Score results files against the truth, with oracles, error shares and intervals; no Ray.

Every video is read, matched and analysed by itself, in one of several processes, so that one holds
the masks of one video at a time, and what is kept of it is small.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from idol.analysis import causes as error_causes
from idol.analysis import clips, intervals, oracles, shares
from idol.analysis.causes import VideoErrors
from idol.analysis.oracles import VideoOracles
from idol.config import AnalysisConfig
from idol.evaluation import average_precision, matching, tracking_metrics
from idol.evaluation.cores import usable_cores
from idol.evaluation.matching import VideoMatches
from idol.evaluation.tracking_metrics import TrackingMetrics, TrackingOptions, VideoTracking
from idol.ytvis import results as results_file
from idol.ytvis import truth as truth_file
from idol.ytvis.index import ResultsIndex, UnusualLayout, compile_reader
from idol.ytvis.results import Entry
from idol.ytvis.truth import Truth, VideoTruth
from pipelines.report import score_page
from pipelines.report.score_page import Compared, Method, Picture

TRACKING_SHOWN = ("HOTA", "DetA", "AssA", "LocA", "IDF1", "MOTSA", "sMOTSA", "IDSW", "Frag")
"""Tracking metrics in the table and the page, averaged over the classes that have truth."""
_FORK_BYTES = 8 << 20  # of a results file; for less, starting processes takes longer
WORST_IN_JSON = 20
"""Worst videos and instances in the JSON line."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Analyses:
    """What is asked for besides scores."""

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

    @property
    def is_light(self) -> bool:
        """Whether overlaps say all that is asked for, and no mask need be kept."""
        one_class = self.tracking is not None and self.tracking.one_class
        return not (self.oracle or self.errors or self.compat or one_class)

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.oracle):
            raise ValueError(f"clip lengths are whole numbers from 1, got {min(self.oracle)}")
        if self.compat and (self.oracle or self.errors or self.tracking):
            raise ValueError(
                "--compat scores malformed input as the official evaluator does; analyses need "
                "well-formed input. Leave --compat away, and what is malformed will be named."
            )


@dataclass(frozen=True, slots=True)
class Results:
    """One results file, its entries by video. With clips: predictions clip by clip.

    path:  of the file
    clips: whether these are clip predictions, to be joined
    truth: whose ids the entries must have
    index: reads a video's entries from the file when asked; None: entries holds them all
    entries, rows: of the whole file; video_id -> positions of its entries
    """

    path: Path
    clips: bool
    truth: Truth
    index: ResultsIndex | None = None
    entries: list[Entry] = field(default_factory=list)
    rows: dict[int, list[int]] = field(default_factory=dict)

    def of(self, video_id: int) -> tuple[list[Entry], list[int]]:
        """A video's entries and their positions. Errors: UnusualLayout, ValueError."""
        if self.index is None:
            rows = self.rows[video_id]
            return [self.entries[i] for i in rows], rows
        entries, rows = self.index.of(video_id)
        for row, entry in zip(rows, entries, strict=True):
            results_file.check_ids(
                entry, row, self.truth.videos, self.truth.categories, compat=False
            )
        return entries, rows


@dataclass(frozen=True, slots=True)
class Scores:
    """What `run` found.

    truth:       as read
    methods:     in the order given
    differences: of every method to the first, in AP
    """

    truth: Truth
    methods: list[Method]
    differences: list[Compared]

    def to_dict(self) -> dict[str, Any]:
        """One JSON object: the first method's at the top, and with several all under results."""
        written = [_method_dict(method) for method in self.methods]
        if len(written) == 1:
            return written[0]
        names = [method.name for method in self.methods]
        return {
            **written[0],
            "results": dict(zip(names, written, strict=True)),
            "differences": [
                {"first": d.first, "second": d.second, "AP": asdict(d.found)}
                for d in self.differences
            ],
        }


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for every results file, all different.

    A file called results.json is named by its folder, any other by its own name. Where folders at
    the end of all paths are the same, the first that differs is the name; where names still are
    equal, folders above are added, and at last a number.
    """
    parts = [
        list((p.parent if p.stem == "results" else p.with_suffix("")).parts)
        for p in (path.resolve() for path in paths)
    ]
    while len({tuple(p) for p in parts}) > 1 and all(
        len(p) > 2 and p[-1] == parts[0][-1] for p in parts
    ):
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


def read_results(path: Path, truth: Truth, *, compat: bool = False, whole: bool = False) -> Results:
    """Open a results file, or clip predictions, with its entries sorted by video.

    whole:  read all of it now, as clips and compat need; otherwise each video when asked for
    Errors: FileNotFoundError; ValueError naming the first malformed entry by its index; in compat
            mode IndexError for empty results, as the official evaluator
    """
    if not (compat or whole):
        try:
            index = ResultsIndex(path)
            index.check_videos(truth.videos, truth.categories)
        except UnusualLayout as error:
            logger.debug("%s is read as a whole: %s", path, error)
        else:
            return Results(path, clips=False, truth=truth, index=index)
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
        results_file.check_ids(entry, number, truth.videos, truth.categories, compat=compat)
        rows[entry["video_id"]].append(number)
    return Results(path, as_clips, truth, entries=entries, rows=rows)


def run(
    truth: Truth,
    paths: Mapping[str, Path],
    analyses: Analyses,
    *,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Score every results file, with what is asked for.

    truth:    with masks
    paths:    name -> results file
    workers:  processes that share the videos of a large file; None: one for every core
    progress: called with a name, the videos done, and all videos
    Errors:   as of `read_results`; ValueError where there is no video
    """
    cores = usable_cores() if workers is None else workers
    methods: list[Method] = []
    draws: list[dict[str, Any]] = []
    for name, path in paths.items():
        try:
            made, scores = _method(name, path, truth, analyses, cores, progress)
        except (ValueError, IndexError) as error:
            if len(paths) == 1:
                raise
            kind = IndexError if isinstance(error, IndexError) else ValueError
            raise kind(f"{path}: {error}") from error
        methods.append(made)
        draws.append(scores)
    differences = []
    for k in range(1, len(methods)):
        first, second = methods[0], methods[k]
        gap = first.metrics.stats["AP"] - second.metrics.stats["AP"]
        if "AP" in first.intervals and "AP" in second.intervals:
            found = intervals.difference(draws[0]["AP"], draws[k]["AP"], gap, analyses.config)
            differences.append(Compared(first.name, second.name, found))
    return Scores(truth, methods, differences)


class _Part(NamedTuple):
    """What is kept of one video."""

    matches: VideoMatches
    oracles: VideoOracles | None
    causes: VideoErrors | None
    tracking: VideoTracking | None


class _Work(NamedTuple):
    """What a process needs for any video."""

    results: Results
    truth: Truth
    analyses: Analyses


_work: list[_Work] = []
"""In a forked process what it works on: handed on by being there, which costs nothing."""


def _forked(video_id: int) -> _Part:
    return _part(_work[-1], video_id)


def _part(work: _Work, video_id: int) -> _Part:
    results, truth, analyses = work
    known = truth.videos[video_id]
    config = analyses.config
    if results.index is not None and analyses.is_light:
        part = _light_part(results.index, known, analyses.tracking)
        if part is not None:
            return part
    entries, rows = results.of(video_id)
    tracks, where = entries, rows
    if results.clips:
        tracks = clips.join(entries, rows, known, config)
        where = list(range(len(tracks)))
    return _Part(
        matching.match_video(tracks, known, where, compat=analyses.compat),
        oracles.match_oracles(entries, rows, known, analyses.oracle, config)
        if analyses.oracle
        else None,
        error_causes.causes_of_video(entries, rows, known, config) if analyses.errors else None,
        tracking_metrics.count_video(tracks, known, where, analyses.tracking)
        if analyses.tracking is not None
        else None,
    )


def _light_part(
    index: ResultsIndex, truth: VideoTruth, tracking: TrackingOptions | None
) -> _Part | None:
    """The same by compiled code, for entries as nearly all are; None where it cannot."""
    columns = index.columns(truth)
    if columns is None:
        return None
    measured = matching.measure_columns(columns, truth, per_frame=tracking is not None)
    if measured is None:
        return None
    counts = None
    if tracking is not None:
        counts = tracking_metrics.count_overlaps(
            truth.video_id,
            truth.categories,
            measured,
            truth_categories=truth.category_ids,
            track_categories=columns.category_ids,
            kept=columns.scores >= tracking.min_score,
            empty_masks=tracking.empty_masks,
        )
    return _Part(matching.match_columns(columns, measured, truth), None, None, counts)


def _parts(work: _Work, workers: int) -> Iterator[_Part]:
    """Every video's part, in order of the truth; with several workers from all of them."""
    videos = list(work.truth.videos)
    size = work.results.path.stat().st_size
    analyses = work.analyses
    compiled = size >= average_precision.LARGE and compile_reader()
    part = partial(_part, work)
    if compiled and analyses.is_light and analyses.tracking is None and workers > 1:
        # Compiled code lets threads run side by side, and they start at once.
        with ThreadPoolExecutor(workers) as threads:
            yield from threads.map(part, videos)
        return
    heavy = size > _FORK_BYTES or analyses.oracle or analyses.errors
    workers = min(workers, len(videos)) if heavy else 1
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(part, videos)
        return
    _work.append(work)
    try:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            # A few at a time keeps both busy to the end; the order is that of the truth.
            yield from pool.imap(_forked, videos, max(1, len(videos) // (16 * workers)))
    finally:
        _work.pop()


def _method(
    name: str,
    path: Path,
    truth: Truth,
    analyses: Analyses,
    workers: int,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[Method, dict[str, Any]]:
    def parts(whole: bool) -> list[_Part]:
        results = read_results(path, truth, compat=analyses.compat, whole=whole)
        done = []
        for part in _parts(_Work(results, truth, analyses), workers):
            done.append(part)
            if progress is not None:
                progress(name, len(done), len(truth.videos))
        return done

    try:
        done = parts(whole=False)
    except UnusualLayout as error:
        logger.debug("%s is read as a whole: %s", path, error)
        done = parts(whole=True)
    matches = [part.matches for part in done]
    in_oracles = [part.oracles for part in done if part.oracles is not None]
    causes = [part.causes for part in done if part.causes is not None]
    counted = [part.tracking for part in done if part.tracking is not None]
    metrics = average_precision.summarise(matches)
    if metrics.missing_videos:
        shown = ", ".join(map(str, metrics.missing_videos[:10]))
        logger.warning(
            "%d of %d videos have no results in %s and are scored as empty: %s%s",
            len(metrics.missing_videos),
            metrics.num_videos,
            path,
            shown,
            ", ..." if len(metrics.missing_videos) > 10 else "",
        )
    found, scores = intervals.intervals(matches, analyses.config)
    tracking = tracking_metrics.summarise_tracking(counted) if counted else None
    method = Method(
        name=name,
        tracking=_shown(tracking),
        all_tracking={} if tracking is None else tracking.to_dict(),
        metrics=metrics,
        intervals=found,
        oracles=oracles.summarise(in_oracles) if in_oracles else None,
        errors=shares.summarise(causes) if causes else None,
    )
    return method, scores


def _shown(metrics: TrackingMetrics | None) -> dict[str, float]:
    if metrics is None:
        return {}
    return {name: metrics.present_averaged.values[name] for name in TRACKING_SHOWN}


def _method_dict(method: Method) -> dict[str, Any]:
    values = method.metrics.to_dict()
    out = {**values.pop("stats"), **values}
    out["intervals"] = {k: [v.low, v.high] for k, v in method.intervals.items()}
    if method.oracles is not None:
        out["oracle"] = method.oracles.to_dict()
    if method.errors is not None:
        out["errors"] = method.errors.to_dict(WORST_IN_JSON)
    if method.tracking:
        out["tracking"] = {**method.tracking, **method.all_tracking}
    return out


def join(truth: Truth, path: Path, out: Path, config: AnalysisConfig) -> int:
    """Write clip predictions as whole tracks, joined by clip matching; returns their number.

    Errors: ValueError where path holds no clip predictions, and as of read_results
    """
    results = read_results(path, truth, whole=True)
    if not results.clips:
        raise ValueError(
            f"{path} has no clip predictions to join: no entry has a 'first_frame'. Entries of "
            "clips say in which frame their clip starts."
        )
    joined = [
        entry
        for video_id, known in truth.videos.items()
        for entry in clips.join(*results.of(video_id), known, config)
    ]
    results_file.write(out, joined)
    return len(joined)


# ---- the page -----------------------------------------------------------------------------------


def write_page(
    out: Path,
    scores: Scores,
    paths: Mapping[str, Path],
    truth_path: Path,
    config: AnalysisConfig,
    *,
    frames: Path | None = None,
    command: str = "",
    created: str = "",
) -> None:
    """Write the HTML page; with frames, also pictures of each method's worst instances.

    paths:      name -> results file
    truth_path: the JSON, for the names of videos and frames
    frames:     folder of the frames. None: JPEGImages beside the truth, or the truth's folder
    """
    listed = {v["id"]: v for v in truth_file.load_json(truth_path, "truth")["videos"]}
    files = {
        video_id: [str(f) for f in video["file_names"]]
        for video_id, video in listed.items()
        if isinstance(video.get("file_names"), list)
    }
    names = {video_id: _video_name(video_id, video) for video_id, video in listed.items()}
    root = frames if frames is not None else _frames_beside(truth_path)
    pictures: list[Picture] = []
    for place, method in enumerate(scores.methods):
        if method.errors is None:
            continue
        results = read_results(paths[method.name], scores.truth)
        for instance in score_page.chosen_instances(method.errors):
            known = scores.truth.videos[instance.video_id]
            entries, rows = results.of(instance.video_id)
            if results.clips:
                entries = clips.join(entries, rows, known, config)
                rows = list(range(len(entries)))
            drawn = score_page.picture(
                method.name,
                place,
                instance,
                known,
                entries,
                rows,
                [root / file for file in files.get(instance.video_id, [])],
                scores.truth.categories,
                names[instance.video_id],
            )
            if drawn is not None:
                pictures.append(drawn)
    if frames is not None and not pictures and any(m.errors for m in scores.methods):
        logger.warning("no frame that the truth names could be read in %s: no pictures", frames)
    score_page.write(
        out,
        score_page.ScorePage(
            title="Scores of " + _listed([method.name for method in scores.methods]),
            methods=scores.methods,
            categories=scores.truth.categories,
            videos=names,
            frames=files,
            config=config,
            differences=scores.differences,
            pictures=pictures,
            command=command,
            created=created,
        ),
    )


def _frames_beside(truth_path: Path) -> Path:
    folder = truth_path.parent / "JPEGImages"
    return folder if folder.is_dir() else truth_path.parent


def _video_name(video_id: int, video: Mapping[str, Any]) -> str:
    """The id, and the name or folder that a person knows it by."""
    name = video.get("name")
    if not name and isinstance(video.get("file_names"), list) and video["file_names"]:
        name = str(video["file_names"][0]).rpartition("/")[0]
    return f"{video_id} {re.sub(r'.*/', '', str(name))}" if name else str(video_id)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
