"""Metrics of one or several results files as one self-contained HTML page, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from markupsafe import Markup

from idol.analysis.causes import CAUSES
from idol.analysis.oracles import OracleExperiments
from idol.analysis.results_file import with_results
from idol.analysis.score_files import Compared, FileMetrics, ScoredFiles
from idol.config import AnalysisConfig
from idol.evaluation.average_precision import RECALL_POINTS
from idol.evaluation.matching import IOU_THRESHOLDS
from idol.ytvis.truth import Truth
from pipelines.report import charts, score_pictures
from pipelines.report import page as report
from pipelines.report.score_pictures import Picture
from pipelines.storage.paths import AnyPath, write_whole

MEANINGS: Final = {
    "class": "right masks, wrong class",
    "mask": "poor masks, or frames in which nothing was found",
    "duplicate": "the instance was found by a better track already",
    "background": "shows no instance",
    "both": "wrong class and poor masks",
    "missed": "an instance that no track is near",
    "switch": "a track goes over to another instance",
    "fragmentation": "an instance is in several tracks",
    "association": "switch and fragmentation together",
    "all": "everything",
}
"""Cause, or causes, that one fix takes away."""

_STRICTNESSES: Final = {
    "mean over IoU 0.50 to 0.95": range(len(IOU_THRESHOLDS)),
    "IoU 0.50": [0],
    "IoU 0.75": [5],
}
_WORST: Final = 100  # instances listed
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorePage:
    """All that the page shows.

    categories: category_id -> name
    videos:     video_id -> name, where videos have one
    frames:     video_id -> file of each frame, of the videos of the worst instances
    """

    title: str
    methods: Sequence[FileMetrics]
    categories: Mapping[int, str]
    videos: Mapping[int, str] = field(default_factory=dict)
    frames: Mapping[int, Sequence[str]] = field(default_factory=dict)
    config: AnalysisConfig = field(default_factory=AnalysisConfig)
    differences: Sequence[Compared] = ()
    pictures: Sequence[Picture] = ()
    command: str = ""
    created: str = ""

    def frame_name(self, video_id: int, frame: int) -> str:
        """File of a frame, or "" where it is not known."""
        names = self.frames.get(video_id, ())
        return names[frame] if frame < len(names) else ""


def write(
    out: AnyPath,
    scores: ScoredFiles,
    paths: Mapping[str, Path],
    truth_path: Path,
    config: AnalysisConfig,
    *,
    frames: Path | None = None,
    command: str = "",
    created: str = "",
) -> None:
    """Write the page; where frames can be read, with pictures of the worst instances.

    paths:  name -> results file
    frames: folder of the frames. None: JPEGImages beside the truth, or the truth's folder
    Raises:
        OSError: the page cannot be written.
    """
    truth = scores.truth
    names = [found.name for found in scores.files]
    worst = {
        one.video_id
        for found in scores.files
        if found.errors is not None
        for one in found.errors.instances[:_WORST]
    }
    page = ScorePage(
        title="Scores of "
        + (names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"),
        methods=scores.files,
        categories=scores.truth.categories,
        videos={video_id: _video_name(video_id, truth) for video_id in truth.videos},
        frames={video_id: truth.videos[video_id].file_names for video_id in sorted(worst)},
        config=config,
        differences=scores.differences,
        command=command,
        created=created,
    )
    beside = truth_path.parent / "JPEGImages"
    root = frames or (beside if beside.is_dir() else truth_path.parent)
    pictures: list[Picture] = []
    for place, found in enumerate(scores.files):
        pictures += _pictures(place, found, scores, paths[found.name], page, root)
    if frames is not None and not pictures and any(found.errors for found in scores.files):
        _log.warning("no frame that the truth names could be read in %s: no pictures", frames)
    write_whole(out, render(replace(page, pictures=pictures)).encode())


def _pictures(
    place: int,
    found: FileMetrics,
    scores: ScoredFiles,
    path: Path,
    page: ScorePage,
    root: Path,
) -> list[Picture]:
    """Pictures of the worst instances of one results file, whose frames lie in root."""
    if found.errors is None:
        return []
    chosen = score_pictures.chosen_instances(found.errors)
    tracks = with_results(
        path,
        scores.truth,
        lambda results: [
            results.tracks(scores.truth.videos[i.video_id], page.config) for i in chosen
        ],
    )
    out = []
    for instance, of_video in zip(chosen, tracks, strict=True):
        strip = score_pictures.draw(
            instance,
            scores.truth.videos[instance.video_id],
            *of_video,
            [root / file for file in page.frames.get(instance.video_id, ())],
            page.categories,
            page.videos[instance.video_id],
        )
        if strip is not None:
            strip = replace(strip, title=f"{found.name}: {strip.title}")
            out.append(Picture(found.name, place, instance.instance_id, strip))
    return out


def _video_name(video_id: int, truth: Truth) -> str:
    """The id, and the name or folder that a person knows it by."""
    name = truth.names.get(video_id, "")
    return f"{video_id} {name.rpartition('/')[2]}" if name else str(video_id)


def render(page: ScorePage) -> str:
    """The page as one string of HTML."""
    template = report.template("score.html", signed=_signed, share=_share, tracking=tracking)
    first = page.methods[0].metrics
    lengths = sorted({n for m in page.methods if m.oracles for n in m.oracles.clips})
    classes = [
        (c, page.categories.get(c, str(c)))
        for c in first.categories
        if any(m.metrics.per_class[c]["AP"] >= 0 for m in page.methods)
    ]
    return template.render(
        page=page,
        videos=first.num_videos,
        confidence=f"{100 * page.config.confidence:g} %",
        with_intervals=any(m.intervals for m in page.methods),
        # Sizes and levels that no instance has would be rows of dashes.
        stats=[
            name
            for name in dict.fromkeys(name for m in page.methods for name in m.metrics.stats)
            if name == "AP" or any(m.metrics.stats.get(name, -1.0) >= 0 for m in page.methods)
        ],
        tracking=list(dict.fromkeys(name for m in page.methods for name in m.shown_tracking)),
        curves=[
            (name, _precision_chart(page.methods, thresholds, None, name))
            for name, thresholds in _STRICTNESSES.items()
        ],
        class_curves=[(name, _precision_chart(page.methods, [0], c, name)) for c, name in classes]
        if len(classes) > 1
        else [],
        classes=classes,
        lengths=lengths,
        oracle_chart=oracle_chart({m.name: m.oracles for m in page.methods if m.oracles})
        if lengths
        else None,
        with_errors=any(m.errors for m in page.methods),
        meanings=list(MEANINGS.items()),
        causes=CAUSES,
        worst=_WORST,
        pictures=[(picture, picture.strip.embedded()) for picture in page.pictures],
        linked={(p.method, p.instance_id) for p in page.pictures},
    )


def _precision_chart(
    methods: Sequence[FileMetrics], thresholds: Sequence[int], category_id: int | None, name: str
) -> Markup:
    """Precision over recall at these IoU thresholds, of one class or those with truth: the mean."""
    drawn = []
    for place, method in enumerate(methods):
        curve = method.metrics.precision[thresholds][..., 0, -1]  # (t, 101, K)
        if category_id is not None:
            curve = curve[..., [method.metrics.categories.index(category_id)]]
        known = curve[..., (curve > -1).all(axis=(0, 1))]
        if known.size:
            points = list(zip(RECALL_POINTS.tolist(), known.mean(axis=(0, 2)), strict=True))
            drawn.append(charts.Line(method.name, points, place))
    return charts.lines(
        drawn, f"Precision over recall, {name}", x_label="recall", y_span=(-0.02, 1.02)
    )


def oracle_chart(methods: Mapping[str, OracleExperiments], *, legend: bool = False) -> Markup:
    """AP over clip length, as the paper's Figures 1 and 3."""
    lengths = sorted({n for done in methods.values() for n in done.clips})
    last = len(lengths) - 1.0
    drawn = []
    for place, (name, done) in enumerate(methods.items()):
        points = [(float(lengths.index(n)), 100 * ap) for n, ap in done.curve() if ap >= 0]
        best, own = (100 * m.stats["AP"] for m in (done.frame, done.predicted))
        if best < 0:
            continue
        # The lines with a constant value first, so that the curve lies above them.
        drawn += [
            charts.Line(f"{name}: frame oracle", [(0.0, best), (last, best)], place, "dashed"),
            charts.Line(f"{name}: predicted", [(0.0, own), (last, own)], place, "dotted"),
            charts.Line(f"{name}: clip oracle", points, place),
        ]
    names = [str(n) for n in lengths]
    return charts.lines(
        drawn, "AP over clip length", x_label="frames in a clip", x_names=names, legend=legend
    )


def _signed(value: float) -> str:
    """A difference of metrics as points of 100 with its sign."""
    return f"{100 * value + 0.0:+.1f}".replace("-0.0", "+0.0").replace("-", "−")


def _share(value: float) -> str:
    """A metric as the length of a bar in percent."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}"


def tracking(value: float | None) -> str:
    """A tracking metric: a share as points of 100, a count as it is."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f}"
