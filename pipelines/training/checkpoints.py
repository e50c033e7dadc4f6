"""Checkpoints of a training: a folder for a step, which is there when its last file is.

Ray Train registers them, keeps the newest and deletes the others. Where training goes on is found
by looking: a checkpoint that lay whole in storage when the run was killed may not be registered yet
(the controller registers at its next look), and Ray's register cannot be read by another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from idol.learning.training import Trainer
from idol.weights import checkpoint
from pipelines.errors import intact
from pipelines.storage import paths
from pipelines.storage.layout import LOSSES
from pipelines.storage.paths import AnyPath, remove_tree, whole_file

FOLDER = "checkpoints"
"""In the output of a training: what Ray Train calls the folder of a run."""
WEIGHTS = "checkpoint.safetensors"
"""Weights to evaluate with (the average where there is one), and their config."""
STATE = "training.pt"
"""Weights, optimiser, average and step, to go on from."""
_REGISTER = "checkpoint_manager_snapshot.json"  # Ray Train's
_STEP = "step-"

Report = tuple[int, dict[str, float]]
"""Step, and the means of its losses since the report before."""
Files = Mapping[str, Callable[[Path], object]]
"""Name -> what writes the file to a local path."""


def name(step: int) -> str:
    """Of the folder of a step."""
    return f"{_STEP}{step:08d}"


def folder(out: AnyPath, step: int) -> AnyPath:
    """Where the files of a step lie."""
    return out / FOLDER / name(step)


def step_of(path: AnyPath) -> int:
    """The step of such a folder."""
    return int(path.name.removeprefix(_STEP))


def complete(out: AnyPath) -> list[AnyPath]:
    """The folders of whole checkpoints, by ascending step."""
    return [path for path in _all(out) if (path / LOSSES).exists()]


def newest_step(out: AnyPath) -> int:
    """The step of the newest whole checkpoint; 0: there is none."""
    found = complete(out)
    return step_of(found[-1]) if found else 0


def commit(place: AnyPath, files: Files) -> None:
    """Write the files of a folder in this order; a folder there was is not whole until the end.

    A folder in object storage cannot be renamed at once, so what counts is its last file.
    """
    *_, last = files
    (place / last).unlink(missing_ok=True)
    for file, write in files.items():
        with whole_file(place / file) as temporary:
            write(temporary)


def prune(out: AnyPath, keep: int) -> None:
    """Delete all checkpoints but the newest whole ones, and Ray's register of them.

    With the register a training of Ray Train would go on by itself, from what is listed there.
    """
    (out / FOLDER / _REGISTER).unlink(missing_ok=True)
    kept = complete(out)[-keep:]
    for path in _all(out):
        if path not in kept:
            remove_tree(path)


def clear(out: AnyPath) -> None:
    """Delete all checkpoints, whole or not."""
    remove_tree(out / FOLDER)


@dataclass(slots=True)
class Progress:
    """What of a training is not in its trainer.

    curve: the reports so far
    sums:  of the losses since the last of them; count: steps since then
    """

    curve: list[Report] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0


def files(trainer: Trainer, progress: Progress) -> Files:
    """What a checkpoint is."""
    state = {"trainer": trainer.state_dict(), "sums": progress.sums, "count": progress.count}
    return {
        WEIGHTS: lambda path: checkpoint.save(trainer.model, path, trainer.weights()),
        STATE: lambda path: torch.save(state, path),
        LOSSES: lambda path: path.write_text(json.dumps(progress.curve)),
    }


def read(out: AnyPath, step: int, device: torch.device) -> tuple[dict[str, Any], Progress]:
    """The state of Trainer.state_dict at a step, and the progress until then.

    Raises: ManifestError: a file is damaged.
    """
    place = folder(out, step)
    with intact(place / STATE):
        with paths.local_file(place / STATE) as saved:
            state = torch.load(saved, map_location=device, weights_only=True)
        return state["trainer"], Progress(read_curve(place), state["sums"], state["count"])


def read_curve(place: AnyPath) -> list[Report]:
    """The reports until a checkpoint. Raises: ManifestError: the file is damaged."""
    with intact(place / LOSSES):
        return [(step, values) for step, values in json.loads((place / LOSSES).read_text())]


def _all(out: AnyPath) -> list[AnyPath]:
    return sorted((out / FOLDER).glob(f"{_STEP}*"), key=step_of)
