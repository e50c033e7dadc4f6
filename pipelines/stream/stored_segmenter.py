"""Detections kept while a source is followed, and identities made of them without a network."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from idol.addresses import shown
from idol.config import Config, from_dict, to_dict
from idol.follower import Follower
from idol.images.live import Source
from idol.images.visualize import Image
from idol.instances import Instances
from idol.structures import FrameDetections, Track
from idol.ytvis import results
from pipelines import configuration
from pipelines.errors import PipelineError, intact
from pipelines.storage import claims, layout, schemas, stored, tables
from pipelines.storage.paths import AnyPath
from pipelines.storage.stored import StoredVideo

_SOURCE = "source"
"""Key of a manifest's extra: name, every and start of the source that the detections are of."""
_SHARD = 256  # frames, which are in memory at once
_PARTS = ("name", "model", "transforms", "detect", "categories", "category_ids")
"""What of a configuration detections depend on, as of the stage detect."""

_log = logging.getLogger(__name__)


class DetectionWriter:
    """Keeps what a segmenter detects as a directory of the stage detect, of one video.

    out:    new, empty, or an earlier one with overwrite
    config: of the segmenter, whose on_detections is `add`
    source: whose frames are detected
    Raises: ManifestError: out holds something else.
    """

    def __init__(
        self,
        out: AnyPath,
        config: Config,
        source: Source,
        *,
        overwrite: bool = False,
    ) -> None:
        whole = to_dict(config)
        self._model = config.model
        self._source = _about(source)
        self._output = claims.prepare_output(
            out,
            layout.DETECT,
            {part: whole[part] for part in _PARTS},
            hashlib.sha256(source.name.encode()).hexdigest(),
            overwrite=overwrite,
        )
        self._rows: list[dict[str, Any]] = []
        self._frames, self._shards, self._size = 0, 0, (1, 1)

    def add(self, found: FrameDetections, size: tuple[int, int]) -> None:
        """Keep the detections of the next frame, which has this (height, width)."""
        self._rows.append(schemas.detections_to_row(found, 1, size))
        self._frames, self._size = self._frames + 1, size
        if len(self._rows) >= _SHARD:
            self._commit()

    def _commit(self) -> None:
        table = schemas.table(self._rows, schemas.DETECTIONS)
        tables.commit(table, self._output.shard(self._shards))
        self._rows, self._shards = [], self._shards + 1

    def finish(self) -> None:
        """Write the rest, and the manifest."""
        if self._rows:
            self._commit()
        video = StoredVideo(
            video_id=1, size=self._size, length=self._frames, shards=tuple(range(self._shards))
        )
        self._output.finish(
            total_shards=self._shards,
            extra={
                "videos": [video.to_json()],
                "num_classes": self._model.num_classes,
                "embedding_size": self._model.embedding_size,
                "truth": False,
                _SOURCE: self._source,
            },
        )


class StoredSegmenter:
    """Stands for an OnlineSegmenter where the detections of a video are stored already.

    detections: a finished detect directory
    video_id:   which of its videos; None: the only one
    overrides:  "tracker.field=value"
    tracker:    see configuration.tracker_config
    source:     whose frames are given
    Raises:
        ManifestError: there are no finished detections.
        PipelineError: there is no such video, they are of other frames, or the tracker asks for
            scores that are not stored.
        ValueError: a bad override or tracker.
    """

    def __init__(
        self,
        detections: str | AnyPath,
        video_id: int | None,
        overrides: Iterable[str],
        tracker: str,
        source: Source,
    ) -> None:
        self._source = stored.read(detections)
        self._check(_about(source))
        for override in overrides:
            if not override.startswith("tracker."):
                raise ValueError(
                    f"--set {override} has no effect on detections that are stored: with "
                    "--detections only fields of the tracker can be set."
                )
        config = from_dict(Config, self._source.manifest.config)
        self.settings = configuration.changed(config, overrides, tracker)
        self._video = self._chosen(video_id)
        self._frames = self._detections()
        self._follower = Follower(self.settings)

    def __call__(self, frame: Image, *, number: int, time: float) -> Instances:
        """The instances of the next stored frame, which is this one."""
        found = next(self._frames, None)
        if found is None:
            raise PipelineError(
                f"{self._source.path} has {self._video.length} frames of video "
                f"{self._video.video_id}, the source has more. Is it the same, with the same "
                "--every, --start and --end?"
            )
        if frame.shape[:2] != self._video.size:
            raise PipelineError(
                f"the source has frames of {frame.shape[:2]} (height, width), the stored video "
                f"{self._video.video_id} of {self._video.size}. Is it the same?"
            )
        return self._follower.add(found, self._video.size, image=frame, number=number, time=time)

    def check_end(self, frames: int) -> None:
        """Raise PipelineError where detections are left after the source's last frame."""
        if next(self._frames, None) is not None:
            raise PipelineError(
                f"the source ended after {frames} frames, but {self._source.path} has "
                f"{self._video.length} of video {self._video.video_id}. Is it the same?"
            )

    def finish(self) -> list[Track]:
        """As of OnlineSegmenter."""
        return self._follower.finish()

    def entries(self, video_id: int = 1) -> Iterator[results.Entry]:
        """As of OnlineSegmenter."""
        return self._follower.entries(video_id)

    def _check(self, given: Mapping[str, Any]) -> None:
        """Of detections that were kept here it is known what they are of."""
        known = self._source.manifest.extra.get(_SOURCE)
        if known is None:
            return
        form = "--every {every} --start {start:g}"
        with intact(self._source.path):
            name, made = known["name"], form.format(**known)
        if made != (now := form.format(**given)):
            raise PipelineError(
                f"{self._source.path} was made with {made}, got {now}: the frames are others. "
                "Give the same."
            )
        if name != given["name"]:
            _log.warning(
                "%s was made of %s, not of %s: right only if the frames are the same",
                *(self._source.path, name, given["name"]),
            )

    def _chosen(self, video_id: int | None) -> StoredVideo:
        videos = {video.video_id: video for video in self._source.videos}
        if video_id is None and len(videos) == 1:
            return self._source.videos[0]
        if video_id not in videos:
            some = ", ".join(map(str, sorted(videos)[:20]))
            raise PipelineError(
                f"{self._source.path} has no video {video_id}. Name one with --video-id: {some}"
                if video_id is not None
                else f"{self._source.path} has {len(videos)} videos. Name one: --video-id {some}"
            )
        return videos[video_id]

    def _detections(self) -> Iterator[FrameDetections]:
        frames, masks = self._source.frames(self._video), self._source.masks(self._video)
        for frame, (_, counts) in zip(frames, masks, strict=True):
            yield replace(frame, masks=tuple(counts))


def _about(source: Source) -> dict[str, Any]:
    """Which frames it gives; its name is the last part of it, without an address's secrets."""
    name = PurePath(shown(source.name)).name
    return {"name": name, "every": source.every, "start": source.start}
