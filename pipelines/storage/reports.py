"""report.json of an evaluation as a class: the stage writes it, pages and sweeps read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from pipelines.errors import intact
from pipelines.storage import layout, manifest
from pipelines.storage.paths import AnyPath


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What of a data set was evaluated: enough to read the same videos and frames again."""

    annotations: str
    """Absolute path or address of the annotation file."""
    frames: str | None
    """Folder that frame paths are relative to; None: the default of the annotation file."""
    videos: list[int] | None
    """The only video_ids that were chosen; None: all."""
    stride: int
    """Every stride-th frame was used."""
    input_hash: str
    """Hash of the data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryMetrics:
    """Metrics of one category."""

    category_id: int
    name: str
    stats: Mapping[str, float]
    """AP, AP50, ... in [0, 1]; -1 where the category has no true instance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMetrics:
    """Metrics of one video that has true instances."""

    video_id: int
    name: str = ""
    stats: Mapping[str, float]
    """AP, AP50, ... of this video alone."""
    tracks: int
    truth: int
    """True instances."""
    switches: int
    """Times that a true instance is shown by another track than the last that showed it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """What an evaluation found. Without truth, the fields from metrics on are empty."""

    videos: int
    """Videos with results."""
    frames: int
    sources: Sequence[str]
    """Annotation files."""
    rejects: Sequence[Mapping[str, Any]]
    """{video_id, path, reason, effect} of the videos that could not be read; effect: counted as
    missed, not scored, or left out where there is no truth."""
    config: Mapping[str, Any]
    """Configuration of detection and tracker."""
    selection: Selection
    metrics: Mapping[str, float]
    """AP, AP50, ... under the names of the official evaluators."""
    frame_oracle: Mapping[str, float]
    """The same metrics of the same masks with true identities (`idol.analysis.oracles`)."""
    upper_bound: Mapping[str, float]
    """The highest that any association of these masks can reach (`idol.evaluation.upper_bound`)."""
    per_category: Sequence[CategoryMetrics]
    per_video: Sequence[VideoMetrics]
    missing_videos: Sequence[int]
    """video_ids with truth but without results."""

    @classmethod
    def read(cls, folder: AnyPath) -> EvaluationReport:
        """The report of a folder. Raises: ManifestError: it holds no finished evaluation."""
        path = folder / layout.REPORT
        values = manifest.read_json(path, layout.EVALUATE)
        with intact(path):
            return cls._of(values)

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> EvaluationReport:
        return cls(
            **{name: values[name] for name in _ALWAYS},
            selection=Selection(**values["selection"]),
            frame_oracle=values.get("frame_oracle", {}),
            upper_bound=values.get("upper_bound", {}),
            per_category=_nested(CategoryMetrics, values.get("per_category", [])),
            per_video=_nested(VideoMetrics, values.get("per_video", [])),
            missing_videos=values.get("missing_videos", []),
        )

    def write(self, folder: AnyPath) -> None:
        """Write report.json, whole or not at all."""
        manifest.commit_json(self.to_dict(), folder / layout.REPORT)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; a metric of a video or category stands beside its other fields."""
        values = {name: getattr(self, name) for name in _ALWAYS}
        values["selection"] = asdict(self.selection)
        if self.metrics:
            values["frame_oracle"] = self.frame_oracle
            values["upper_bound"] = self.upper_bound
            values["per_category"] = [_flat(row) for row in self.per_category]
            values["per_video"] = [_flat(row) for row in self.per_video]
            values["missing_videos"] = self.missing_videos
        return values

    def headline(self) -> dict[str, float | None]:
        """The metrics, and AP of frame oracle and upper bound, which is None without truth."""
        best = {"AP_frame_oracle": self.frame_oracle, "AP_upper_bound": self.upper_bound}
        return {**self.metrics, **{name: stats.get("AP") for name, stats in best.items()}}

    def by_category(self) -> dict[str, Mapping[str, float]]:
        """Metrics of each category by its name, with its id where several have one name."""
        count = Counter(row.name for row in self.per_category)
        return {
            row.name if count[row.name] == 1 else f"{row.name} ({row.category_id})": row.stats
            for row in self.per_category
        }

    def flat(self) -> dict[str, float]:
        """Every number of the whole data set under one name, for the experiment log."""
        return {
            **self.metrics,
            **{f"frame_oracle/{name}": value for name, value in self.frame_oracle.items()},
            **{f"upper_bound/{name}": value for name, value in self.upper_bound.items()},
            **{f"category/{name}/AP": stats["AP"] for name, stats in self.by_category().items()},
            "videos": self.videos,
            "rejects": len(self.rejects),
        }


_Row = TypeVar("_Row", CategoryMetrics, VideoMetrics)
_ALWAYS = ("videos", "frames", "sources", "rejects", "config", "metrics")
"""Fields that report.json has as they are, with truth or without."""


def _nested(kind: type[_Row], rows: Iterable[dict[str, Any]]) -> list[_Row]:
    """JSON rows as objects: whatever is no field of theirs stands under stats."""
    names = {field.name for field in fields(kind)}
    return [
        kind(
            **{name: value for name, value in row.items() if name in names},
            stats={name: value for name, value in row.items() if name not in names},
        )
        for row in rows
    ]


def _flat(row: CategoryMetrics | VideoMetrics) -> dict[str, Any]:
    values = asdict(row)
    stats: dict[str, float] = values.pop("stats")
    return values | stats
