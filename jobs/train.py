"""Train on prepared pairs: `python -m jobs.train --pairs PAIRS --out RUN --preset tiny`."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from idol import clip_presets, presets
from idol.config import override
from jobs.options import command, places

if TYPE_CHECKING:
    from pipelines.cluster import Pool


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train IDOL on key/reference pairs, data parallel over CPU or GPU workers of a Ray cluster.

    A finished run is returned at once, a killed one goes on at its last checkpoint with --resume.
    Writes checkpoint.safetensors (weights and configuration), losses.json and an MLflow run.
    """

    pairs: tuple[str, ...]
    """Output of jobs.prepare: a folder, or an address such as s3://bucket/folder. Several, with
    categories of the same names, are trained on together: every batch has pairs of each."""
    pairs_weights: tuple[float, ...] = ()
    """How often pairs of each output are drawn, in relation to the others: 2 1. Default: alike."""
    out: Annotated[str, places.FOLDER]
    """Where the checkpoint and the losses go: a folder, or an address."""
    preset: Annotated[
        str,
        tyro.conf.arg(
            help=f"The configuration to start from: {', '.join(presets.PRESETS)}; of clips "
            f"{', '.join(clip_presets.PRESETS)}."
        ),
    ] = "tiny"
    set: command.Repeated = ()
    """Change one number: section.field=value, e.g. train.steps=1000. Repeatable."""
    weights: str | None = None
    """Start from these weights: OUT of a finished training, a checkpoint, a released .pth,
    hf://owner/repo/file, a URL, or 'shipped' (the tiny weights of this package). Default:
    random."""
    backbone_weights: str | None = None
    """Start the backbone alone from ImageNet weights, the rest at random: a file,
    hf://owner/repo/file, or a URL. Not together with --weights."""
    reset_classes: bool = False
    """Start the class heads from random weights where the weights were trained on other categories,
    by their names, or do not say on which."""
    workers: Annotated[str, tyro.conf.arg(metavar="N|N..M")] = "2"
    """Data-parallel workers: 4, or 2..8 for as many as there are machines for, as they come and
    go. 0: inside this process, without Ray Train. A killed run may go on with another number."""
    gpus: bool = False
    """One GPU per worker (NCCL). Without it the workers use CPUs (gloo)."""
    cpus_per_worker: int = 1
    """CPUs that each worker reserves, and threads that it computes with."""
    label_selector: command.Repeated = ()
    """Use only nodes with this label: key=value. Repeatable."""
    validate: str | None = None
    """Labelled videos, in any known format, that training does not see: every
    validation.every steps they are detected, tracked and scored, and the best weights are kept as
    best.safetensors."""
    validate_frames: command.Frames = None
    profile: int = 0
    """Record so many steps with torch's profiler, into OUT/trace.json.gz."""
    resume: command.Switch = False
    """Go on at the newest checkpoint of a run that was killed; without any, begin."""
    overwrite: bool = False
    """Delete an earlier output in OUT first. Never deletes anything else."""
    dry_run: command.DryRun = False
    log_to: Annotated[Path | None, places.LOG] = None
    """Folder of the MLflow file. Default: the one that OUT lies in, so that stages of one run meet
    there; without effect where MLFLOW_TRACKING_URI is set."""


def _train(job: Train) -> dict[str, Any]:
    config = override(presets.by_name(job.preset), job.set)
    from pipelines import cluster
    from pipelines.batches import pair_sets
    from pipelines.stages import train
    from pipelines.stages.validation import Validation
    from pipelines.storage import paths
    from pipelines.storage.manifest import MANIFEST
    from pipelines.training.initial_model import Start
    from pipelines.training.workers import Workers

    pairs, out = pair_sets.given(job.pairs, job.pairs_weights), paths.at(job.out)
    config = train.with_pairs(config, pairs, job.set)
    validation = None
    if job.validate is not None:
        validation = Validation(annotations=job.validate, frames=job.validate_frames)
    elif any(text.strip().startswith("validation.") for text in job.set):
        raise ValueError("--set validation.… needs --validate LABELS: there are no videos to score")
    workers = Workers(
        count=_count(job.workers),
        gpus=job.gpus,
        cpus=job.cpus_per_worker,
        labels=_labels(job.label_selector),
    )
    if job.dry_run:
        from pipelines import plan

        return command.planned(plan.train(config, workers, job.validate is not None), out)
    with cluster.kept():
        manifest = train.run(
            pairs,
            out,
            config,
            Start(
                weights=job.weights,
                backbone_weights=job.backbone_weights,
                reset_classes=job.reset_classes,
            ),
            workers,
            train.Watching(
                validation=validation, profile=job.profile, log_to=job.log_to or out.parent
            ),
            resume=job.resume,
            overwrite=job.overwrite,
        )
    files = {"checkpoint": str(out / train.WEIGHTS), "whole": str(out / MANIFEST)}
    return {**asdict(manifest), **files}


def _count(text: str) -> Pool | int:
    """Raises: ValueError: it is none of the words of --workers."""
    from pipelines.cluster import Pool

    try:
        return 0 if text.strip() == "0" else Pool.of(text)
    except ValueError:
        told = "--workers is a number such as 4, a range such as 2..8, or 0 for this process, got"
        raise ValueError(f"{told} {text!r}") from None


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """Raises: ValueError: one is not key=value."""
    labels = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--label-selector is key=value, got {text!r}")
        labels[key] = value
    return labels


main = functools.partial(command.run, "train", Train, _train, also=(FloatingPointError,))

if __name__ == "__main__":
    main()
