"""How stages and the files of their directories are named: what readers and writers agree on."""

from __future__ import annotations

from pipelines.storage.paths import AnyPath

PREPARE, TRAIN, DETECT, TRACK = "prepare", "train", "detect", "track"
EVALUATE, SWEEP = "evaluate", "sweep"
"""Names of the stages, as their manifests have them."""

LOSSES = "losses.json"
"""Of train: [[step, {name: value}], ...], means since the step before."""
DETECTIONS, TRACKS = "detections", "tracks"
"""Of evaluate: the directories of detect and track."""
RESULTS, SUBMISSION = "results.json", "results.zip"
"""Of track and evaluate: the servers' form, and the archive that they take."""
REPORT, PAGE = "report.json", "report.html"
"""Of evaluate and sweep: the numbers, and the page."""

PROBE = "_probe-"
"""How folders begin in which nodes show that they can write; one stays where a job was killed."""


def shard_path(path: AnyPath, number: int, prefix: str = "shard") -> AnyPath:
    """Where a shard of a stage's table lies; the OVERLAP table of detect has prefix "overlap"."""
    return path / f"{prefix}-{number:05d}.parquet"


def frames_path(path: AnyPath, number: int) -> AnyPath:
    """Where the frames of a shard lie whose table is a FRAME_INDEX."""
    return path / f"frames-{number:05d}.arrows"
