"""A worker's place among the workers, and to whom it reports: Ray Train, or this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines import gauges
from pipelines.storage import paths
from pipelines.storage.paths import AnyPath
from pipelines.training import checkpoints
from pipelines.training.checkpoints import Files

STEP = "step"
"""The name that the number of a step has among the reported values."""


class Seat:
    """The only worker, in this process.

    rank, world: of the workers; beside: workers on this machine
    wrap:        see idol.learning.Trainer
    tell:        called with every report
    """

    rank, world, beside = 0, 1, 1
    wrap: Any = None

    def __init__(
        self, device: torch.device, tell: Callable[[int, dict[str, float]], None] | None = None
    ) -> None:
        self.device = device
        self._tell = tell

    def agreed(self, value: int) -> int:
        """The first worker's value, on all workers."""
        return value

    def leaving(self) -> bool:
        """Whether a machine of the workers will be taken away; all workers ask, and agree."""
        return False

    def report(
        self, step: int, values: dict[str, float], out: AnyPath, files: Files | None, keep: int
    ) -> None:
        """Tell the numbers of a step and, with files, write its checkpoint.

        files: of the first worker; of others anything but None, where the first has any
        keep:  newest checkpoints to keep
        """
        if files is not None:
            checkpoints.commit(checkpoints.folder(out, step), files)
            checkpoints.prune(out, keep)
        if self._tell is not None:
            self._tell(step, values)


class RaySeat(Seat):
    """A worker of Ray Train, in its process."""

    def __init__(self) -> None:
        from ray.train import get_context
        from ray.train.torch import get_device, prepare_model

        super().__init__(get_device())
        context = get_context()
        self.rank = context.get_world_rank()
        self.world = context.get_world_size()
        self.beside = context.get_local_world_size()
        self.wrap = partial(
            prepare_model, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
        )

    def agreed(self, value: int) -> int:
        """As of Seat."""
        from ray.train.collective import broadcast_from_rank_zero

        return int(broadcast_from_rank_zero(value))

    def leaving(self) -> bool:
        """As of Seat."""
        from ray.train import get_preemption_info

        return get_preemption_info() is not None

    def report(
        self, step: int, values: dict[str, float], out: AnyPath, files: Files | None, keep: int
    ) -> None:
        """As of Seat; a checkpoint is registered by Ray Train, which keeps the newest."""
        from ray.train import Checkpoint, CheckpointUploadMode, report

        written, send = None, None
        if files is not None and self.rank == 0:
            # In Ray's folder of this worker, which goes with it if it is killed now.
            local = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=os.getcwd()))
            for name, write in files.items():
                write(local / name)
            written = Checkpoint.from_directory(str(local))
            send = partial(_send, local, list(files), checkpoints.folder(out, step))
        if self.rank == 0:
            gauges.tell("train", {STEP: step, **values})
        report(
            {STEP: step, **values},
            checkpoint=written,
            checkpoint_dir_name=checkpoints.name(step),
            # Sent by a thread while training goes on. Reports without files wait there, too, for
            # the controller, which takes one at each look.
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=send,
        )


def _send(local: Path, names: list[str], place: AnyPath, written: Any, name: str) -> Any:
    """Put a written checkpoint into storage, in the order in which its files count.

    written, name: as Ray Train gives them
    """
    from ray.train import Checkpoint, get_context

    copies = {n: partial(shutil.copyfile, local / n) for n in names}
    checkpoints.commit(place, copies)
    storage = get_context().get_storage()
    return Checkpoint(
        path=storage.build_checkpoint_path_from_name(name), filesystem=storage.storage_filesystem
    )


def storage(out: AnyPath) -> dict[str, Any]:
    """Where Ray Train keeps a run's checkpoints: of ray.train.RunConfig."""
    system, inner = paths.native(out)
    return {"name": checkpoints.FOLDER, "storage_path": inner, "storage_filesystem": system}
