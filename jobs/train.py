"""Train on prepared pairs: `python -m jobs.train --pairs PAIRS --out RUN --preset tiny`."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from idol import presets
from idol.config import override
from jobs import command, places


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train IDOL on key/reference pairs, data parallel over CPU or GPU workers of a Ray cluster.

    Run twice, a finished run is returned at once and a killed one goes on at its last checkpoint.
    Writes checkpoint.safetensors (weights and configuration), losses.json and an MLflow run.
    """

    pairs: str
    """Output of jobs.prepare: a folder, or an address such as s3://bucket/folder."""
    out: Annotated[str, places.FOLDER]
    """Where the checkpoint and the losses go: a folder, or an address."""
    preset: Annotated[
        str,
        tyro.conf.arg(help=f"The configuration to start from: {', '.join(presets.PRESETS)}."),
    ] = "tiny"
    set: command.Repeated = ()
    """Change one number: section.field=value, e.g. train.steps=1000. Repeatable."""
    weights: str | None = None
    """Start from these weights: a checkpoint, a released .pth, hf://owner/repo/file, a URL, or
    'shipped' (the tiny weights of this package). Default: random."""
    backbone_weights: str | None = None
    """Start the backbone alone from ImageNet weights, the rest at random: a file,
    hf://owner/repo/file, or a URL. Not together with --weights."""
    reset_classes: bool = False
    """Start the class heads from random weights where the weights were trained on other categories,
    by their names, or do not say on which."""
    workers: int = 2
    """Data-parallel workers: one CPU core each, or one GPU each with --gpus. A killed run may go on
    with another number."""
    gpus: bool = False
    """One GPU per worker (NCCL). Without it the workers use CPUs (gloo)."""
    overwrite: bool = False
    """Delete an earlier output in OUT first. Never deletes anything else."""
    log_to: Annotated[Path | None, places.LOG] = None
    """Folder of the MLflow file. Default: the one that OUT lies in, so that stages of one run meet
    there; without effect where MLFLOW_TRACKING_URI is set."""


def _train(job: Train) -> None:
    config = override(presets.by_name(job.preset), job.set)
    from pipelines import cluster
    from pipelines.stages import train
    from pipelines.storage import paths

    pairs, out = paths.at(job.pairs), paths.at(job.out)
    config = train.with_pairs(config, pairs, job.set)
    with cluster.kept(dashboard=True):
        manifest = train.run(
            pairs,
            out,
            config,
            weights=job.weights,
            backbone_weights=job.backbone_weights,
            reset_classes=job.reset_classes,
            workers=job.workers,
            gpus=job.gpus,
            overwrite=job.overwrite,
            log_to=job.log_to or out.parent,
        )
    # In the order of the manifest, not sorted.
    print(json.dumps({"checkpoint": str(out / train.WEIGHTS), **asdict(manifest)}))


main = functools.partial(command.run, "train", Train, _train, also=(FloatingPointError,))

if __name__ == "__main__":
    main()
