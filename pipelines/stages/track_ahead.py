"""Tracks videos while the network still computes others, the longest first."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Sequence
from typing import Any

from idol.config import Config
from pipelines import cluster
from pipelines.stages import detect, shard_plan, track
from pipelines.stages.shard_plan import Shard
from pipelines.storage import layout, tables
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.stored import StoredDetections, StoredVideo

_log = logging.getLogger(__name__)


class TrackAhead:
    """Tracks each video on a free CPU as soon as all shards with its frames are written.

    Use it inside the cluster.session of detect.run. track.run then does the videos of the last
    shards, and those that failed here.

    shards:     shard_plan.plan of the dataset
    detections: where detect.run writes
    folder:     gets a file per video, for the `ahead` of track.run
    """

    def __init__(
        self, shards: Sequence[Shard], detections: AnyPath, config: Config, folder: AnyPath
    ) -> None:
        import ray

        self._folder = folder.resolve()
        self._tracker = config.tracker
        # The directory as readers of single videos need it, before its manifest exists.
        model = config.model
        sizes = {"num_classes": model.num_classes, "embedding_size": model.embedding_size}
        known = Manifest(
            stage=layout.DETECT, config=detect.claim(config), extra={**sizes, "truth": False}
        )
        self._source = StoredDetections(detections.resolve(), known, ())
        self._shards = shards
        self._videos = shard_plan.stored_videos(shards)
        self._missing = {video_id: set(v.shards) for video_id, v in self._videos.items()}
        self._ready: list[tuple[int, int]] = []  # (-frames, video_id), the longest first
        self._running: list[Any] = []
        self._read: dict[int, frozenset[int]] = {}  # of each shard, the videos it rejects
        self._task = ray.remote(num_cpus=1, max_retries=3)(track.write_video)

    def shard(self, number: int) -> None:
        """Take note that a shard is written: the on_shard of detect.run."""
        for video_id in {cut.video_id for cut in self._shards[number].cuts}:
            missing = self._missing[video_id]
            if missing == {number} and not track.ahead_path(self._folder, video_id).exists():
                video = self._videos[video_id]
                if not self._rejected(video):
                    heapq.heappush(self._ready, (-video.length, video_id))
            missing.discard(number)
        self._start()

    def finish(self) -> None:
        """Wait for what is running, and begin nothing more: track.run does the rest."""
        import ray

        for reference in self._running:
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                _log.warning("a video that was tracked ahead will be tracked again: %s", error)
        self._running = []

    def _start(self) -> None:
        """Fill the CPUs that detection leaves free."""
        import ray

        if self._running:
            _, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=0.0)
        # Detect's actors hold CPUs too, so that some of these tasks wait for a free one.
        while self._ready and len(self._running) < cluster.cpus():
            video = self._videos[heapq.heappop(self._ready)[1]]
            path = track.ahead_path(self._folder, video.video_id)
            self._running.append(self._task.remote(self._source, video, self._tracker, path))

    def _rejected(self, video: StoredVideo) -> bool:
        """Whether a frame of it could not be read: then it has no rows."""
        return any(video.video_id in self._rejects(number) for number in video.shards)

    def _rejects(self, number: int) -> frozenset[int]:
        """The videos that a shard rejects; it is read once, and has many videos."""
        if number not in self._read:
            path = layout.shard_path(self._source.path, number)
            self._read[number] = frozenset(r.video_id for r in tables.shard_rejects(path))
        return self._read[number]
