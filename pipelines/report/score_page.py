"""Scores of one or several methods as one self-contained HTML page, without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from idol.analysis import clips
from idol.analysis.causes import CAUSES, Instance
from idol.analysis.intervals import Difference, Interval
from idol.analysis.oracles import OracleExperiments
from idol.analysis.shares import ErrorShares
from idol.config import AnalysisConfig
from idol.evaluation.average_precision import RECALL_POINTS, Metrics
from idol.evaluation.matching import IOU_THRESHOLDS
from idol.images import visualize
from idol.ytvis.truth import Rle, VideoTruth
from pipelines.report import charts
from pipelines.report import page as report
from pipelines.report.page import Image

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
WORST: Final = 100
"""Instances listed."""
_PICTURES = 6  # of each method
_FRAMES = 5  # of a picture
_DRAWN = 4  # tracks of the best scores in a picture, besides the instance's own


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What is known of one method."""

    name: str
    """How the page calls it."""
    metrics: Metrics
    """Its scores."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Metric name -> interval."""
    oracles: OracleExperiments | None = None
    """Its oracle experiments, where they were asked for."""
    errors: ErrorShares | None = None
    """Its error shares, where they were asked for."""
    tracking: Mapping[str, float] = field(default_factory=dict)
    """Tracking metric -> value, for the table."""
    all_tracking: Mapping[str, Any] = field(default_factory=dict)
    """All of them, for the JSON: TrackingMetrics.to_dict."""


class Compared(NamedTuple):
    """One method against another."""

    first: str
    second: str
    found: Difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One instance over time, found above true."""

    place: int
    """Of the method on the page."""
    method: str
    instance: Instance
    title: str
    caption: str
    labels: Sequence[str]
    """Above each column."""
    found: Sequence[Image]
    truth: Sequence[Image]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorePage:
    """All that the page shows."""

    title: str
    methods: Sequence[Method]
    categories: Mapping[int, str]
    """category_id -> name."""
    videos: Mapping[int, str] = field(default_factory=dict)
    """video_id -> name, where videos have one."""
    frames: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """video_id -> file of each frame, where the truth says."""
    config: AnalysisConfig = field(default_factory=AnalysisConfig)
    differences: Sequence[Compared] = ()
    pictures: Sequence[Picture] = ()
    command: str = ""
    created: str = ""

    def frame_name(self, video_id: int, frame: int) -> str:
        """File of a frame, or "" where it is not known."""
        names = self.frames.get(video_id, ())
        return names[frame] if frame < len(names) else ""


def write(path: Path | str, page: ScorePage) -> Path:
    """Write the page to path, atomically; returns the path.

    Errors: OSError where the folder is missing or cannot be written.
    """
    path = Path(path)
    content = render(page)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
    return path


def render(page: ScorePage) -> str:
    """The page as one string of HTML."""
    template = report.template("score.html", signed=_signed, share=_share, tracking=_tracking)
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
        tracking=list(dict.fromkeys(name for m in page.methods for name in m.tracking)),
        curves=curves(page.methods),
        class_curves=class_curves(page.methods, classes) if len(classes) > 1 else [],
        classes=classes,
        lengths=lengths,
        oracle_chart=oracle_chart({m.name: m.oracles for m in page.methods if m.oracles})
        if lengths
        else None,
        with_errors=any(m.errors for m in page.methods),
        meanings=list(MEANINGS.items()),
        causes=CAUSES,
        worst=WORST,
        pictures=[_embedded(picture) for picture in page.pictures],
        linked={(p.method, p.instance.instance_id) for p in page.pictures},
    )


# ---- charts -------------------------------------------------------------------------------------


def curves(methods: Sequence[Method]) -> list[tuple[str, Markup]]:
    """Precision over recall at three strictnesses, mean over the classes with truth."""
    chosen = {
        "mean over IoU 0.50 to 0.95": list(range(len(IOU_THRESHOLDS))),
        "IoU 0.50": [0],
        "IoU 0.75": [5],
    }
    return [
        (name, _precision_chart(methods, thresholds, None, name))
        for name, thresholds in chosen.items()
    ]


def class_curves(
    methods: Sequence[Method], classes: Sequence[tuple[int, str]]
) -> list[tuple[str, Markup]]:
    """Precision over recall at IoU 0.50, a chart for each class."""
    return [(name, _precision_chart(methods, [0], c, name)) for c, name in classes]


def _precision_chart(
    methods: Sequence[Method], thresholds: Sequence[int], category_id: int | None, name: str
) -> Markup:
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
    last = float(max(len(lengths) - 1, 0))
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


# ---- pictures -----------------------------------------------------------------------------------


def picture(
    method: str,
    place: int,
    instance: Instance,
    truth: VideoTruth,
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    files: Sequence[Path],
    categories: Mapping[int, str],
    video_name: str = "",
) -> Picture | None:
    """One instance drawn on a few of its frames, the worst among them; None without readable ones.

    method, place:    of the page
    instance:         what is drawn
    truth:            of its video, with masks
    entries, indices: results of this video, as of `clips.tracks_of`
    files:            image of each frame
    categories:       category_id -> name
    """
    span = np.linspace(instance.first_frame, instance.last_frame, _FRAMES).round()
    chosen = sorted({*span.astype(int).tolist(), instance.worst_frame})
    images = {t: image for t in chosen if (image := _read(files, t, truth.size)) is not None}
    if not images:
        return None
    tracks = clips.tracks_of(entries, indices, truth)
    ranked = sorted(range(len(tracks)), key=lambda n: -max(tracks[n].class_scores.values()))
    own = [n for n, track in enumerate(tracks) if instance.entry in track.positions.values()]
    drawn = sorted({*ranked[:_DRAWN], *own})
    g = truth.instance_ids.tolist().index(instance.instance_id)
    name = categories.get(instance.category_id, str(instance.category_id))
    found = []
    for t, image in images.items():
        here = [(n, tracks[n]) for n in drawn if t in tracks[n].masks]
        texts = []
        for n, track in here:
            best = max(track.class_scores, key=lambda c: track.class_scores[c])
            score = track.class_scores[best]
            texts.append(visualize.caption(categories.get(best, str(best)), n, score))
        pictures = [track.masks[t] for _, track in here]
        found.append(_drawn(image, pictures, [n for n, _ in here], texts, truth.size))
    true = [
        _drawn(
            image,
            [] if (mask := truth.masks[g][t]) is None else [mask],
            [g][: mask is not None],
            [name][: mask is not None],
            truth.size,
        )
        for t, image in images.items()
    ]
    marks = {instance.worst_frame: ", the worst"}
    return Picture(
        place=place,
        method=method,
        instance=instance,
        title=f"{method}: {name} {instance.instance_id} of video {video_name or truth.video_id}",
        caption=f"{instance.cause}: IoU {instance.iou:.2f}, with true identities "
        f"{instance.joined_iou:.2f}; shown in {instance.shown} of {instance.frames} frames by "
        f"{instance.tracks} {'track' if instance.tracks == 1 else 'tracks'}",
        labels=[f"frame {t}{marks.get(t, '')}" for t in images],
        found=found,
        truth=true,
    )


def chosen_instances(errors: ErrorShares) -> list[Instance]:
    """Instances worth a picture: the worst, not more than two of one video."""
    of_video: dict[int, int] = {}
    out: list[Instance] = []
    for instance in errors.instances:
        count = of_video.get(instance.video_id, 0)
        if instance.lost > 0 and count < 2 and len(out) < _PICTURES:
            of_video[instance.video_id] = count + 1
            out.append(instance)
    return out


def _read(files: Sequence[Path], frame: int, size: tuple[int, int]) -> Image | None:
    """A frame as (H, W, 3) RGB at the truth's size; None where there is no readable one."""
    if frame >= len(files) or not files[frame].is_file():
        return None
    image = cv2.imread(str(files[frame]), cv2.IMREAD_COLOR)
    if image is None or image.shape[:2] != size:
        return None
    rgb: Image = np.ascontiguousarray(image[..., ::-1])
    return rgb


def _drawn(
    image: Image,
    found: Sequence[Rle],
    identities: Sequence[int],
    texts: Sequence[str],
    size: tuple[int, int],
) -> Image:
    from idol.masks import resize  # with torch, which scores do not need

    decoded = resize.decode([mask["counts"] for mask in found], size)
    return visualize.overlay(image, decoded, list(identities), list(texts))


def _embedded(shown: Picture) -> dict[str, Any]:
    rows = [("found", shown.found), ("truth", shown.truth)]
    return {
        "place": shown.place,
        "instance_id": shown.instance.instance_id,
        "title": shown.title,
        "caption": shown.caption,
        "labels": list(shown.labels),
        "columns": len(shown.labels),
        "rows": [(name, [report.data_uri(image) for image in images]) for name, images in rows],
    }


# ---- numbers ------------------------------------------------------------------------------------


def _signed(value: float) -> str:
    """A difference of metrics as points of 100 with its sign."""
    return f"{100 * value + 0.0:+.1f}".replace("-0.0", "+0.0").replace("-", "−")


def _share(value: float) -> str:
    """A metric as the length of a bar in percent."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}"


def _tracking(value: float | None) -> str:
    """A tracking metric: a share as points of 100, a count as it is."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f}"
