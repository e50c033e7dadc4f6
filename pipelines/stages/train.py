"""Pairs → weights: the Ray Train loop around `idol.learning`, data parallel over any workers."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from idol.config import Config, override, to_dict
from idol.learning.pieces import part_of_batch
from idol.weights import checkpoint
from pipelines import cluster, probe
from pipelines.batches import loader
from pipelines.errors import intact
from pipelines.report import experiment_log
from pipelines.stages import training_loop
from pipelines.stages.initial_model import Start, initial_model
from pipelines.stages.training_loop import START, Loop, Report, Seat
from pipelines.storage import claims, manifest, paths, steps
from pipelines.storage.layout import LOSSES, TRAIN
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath

WEIGHTS = training_loop.WEIGHTS
"""The result: weights to evaluate with (the average where there is one), and their config."""


def run(
    pairs: AnyPath,
    out: AnyPath,
    config: Config,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    reset_classes: bool = False,
    workers: int = 2,
    gpus: bool = False,
    overwrite: bool = False,
    log_to: AnyPath | None = None,
) -> Manifest:
    """Train on the pairs of a finished prepare directory; a killed run goes on where it was.

    pairs:     output of pairs.run; its categories decide the class heads, its instances the
               identity head where config.losses.identity asks for one, and its configuration is
               recorded in the place of config.pairs
    out:       gets checkpoint.safetensors, losses.json and the manifest. With workers on several
               machines it must be storage that all of them see.
    weights, backbone_weights, reset_classes: see Start
    workers:   data-parallel processes, one core or GPU each; 0: inside this process. A resumed
               run may have another number: the batches are the same, sums of floats are not
    gpus:      one GPU per worker, NCCL instead of gloo
    log_to:    folder of the MLflow file that the losses and the numbers of Speed are logged to;
               None: no MLflow run
    Raises:
        ManifestError: the pairs are unfinished.
        ValueError: more workers than pairs in a batch, or both kinds of weights are given.
        CheckpointError: the weights do not fit.
        Diverged: a loss or gradient is not finite. The message names the pairs and the file to
                  compute that step again from; nothing is tried again.
    """
    start = Start(weights=weights, backbone_weights=backbone_weights, reset_classes=reset_classes)
    output, loop = _begin(pairs, out, config, start, workers, overwrite)
    if output.finished is not None:
        return output.finished
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        log = None
        if log_to is not None:
            opened = experiment_log.run(log_to, f"train {out.name}", to_dict(loop.config))
            log = stack.enter_context(opened)
        last = _fit(loop, workers, gpus, log)
        with paths.local_file(last / WEIGHTS) as made, paths.whole_file(out / WEIGHTS) as temporary:
            shutil.copyfile(made, temporary)
        curve = json.loads((last / LOSSES).read_text())
        manifest.commit_json(curve, out / LOSSES)
        if log is not None:
            log.artifacts(out / LOSSES)
    _clean(out)
    extra = {
        "steps": config.train.steps,
        "workers": workers,
        "seconds_training": round(time.monotonic() - started, 1),
        "last_losses": curve[-1][1] if curve else {},
    }
    return output.finish(rows=config.train.steps, extra=extra)


def advance(
    pairs: AnyPath,
    out: AnyPath,
    config: Config,
    until: int,
    *,
    weights: str | None = None,
    reset_classes: bool = False,
    workers: int = 2,
    gpus: bool = False,
) -> AnyPath:
    """Train up to a step, in the schedule of all config.train.steps; the weights so far.

    A later call with more steps, or run, goes on from here. Arguments as of run.

    until: config.train.steps or more finish the run
    """
    start = Start(weights=weights, reset_classes=reset_classes)
    if until >= config.train.steps:
        run(pairs, out, config, **asdict(start), workers=workers, gpus=gpus)
        return out / WEIGHTS
    output, loop = _begin(pairs, out, config, start, workers, overwrite=False)
    if output.finished is not None:
        return out / WEIGHTS
    done = steps.complete(out, LOSSES)
    if not done or steps.step_of(done[-1]) < until:
        done = [_fit(replace(loop, stop=until), workers, gpus, None)]
    return done[-1] / WEIGHTS


def _begin(
    pairs: AnyPath, out: AnyPath, config: Config, start: Start, workers: int, overwrite: bool
) -> tuple[claims.Output, Loop]:
    """Claim the directory and put the first weights there."""
    source = manifest.read(pairs, "prepare")
    config = with_pairs(config, pairs)
    with intact(pairs / manifest.MANIFEST):
        config = with_categories(config, source.extra["categories"], source.extra["category_ids"])
    if config.pairs.clip != 2:
        raise ValueError(
            f"this network learns from pairs of frames, but {pairs} was made with "
            f"pairs.clip={config.pairs.clip}. Make it with pairs.clip=2."
        )
    config = with_identities(config, pairs)
    part_of_batch(config.train.pairs_per_batch, 0, max(workers, 1))  # none may have no pair
    loop = Loop(config=config, pairs=pairs.resolve(), out=out.resolve(), stop=config.train.steps)
    known = not overwrite and any((out / f).exists() for f in (manifest.STARTED, manifest.MANIFEST))
    # What does not fit must fail before a directory is made; what is done needs no weights.
    model = None if known else initial_model(config, start)
    claim = {"config": to_dict(config), **start.recorded()}
    output = claims.prepare_output(out, TRAIN, claim, source.hash, overwrite=overwrite)
    if output.finished is not None:
        return output, loop
    if overwrite:
        _clean(out)
    if not steps.complete(out, LOSSES):
        with paths.whole_file(out / START) as temporary:
            checkpoint.save(model or initial_model(config, start), temporary)
    return output, loop


def _clean(out: AnyPath) -> None:
    """Remove what only an unfinished run needs."""
    steps.clear(out)
    (out / START).unlink(missing_ok=True)


def with_pairs(config: Config, pairs: AnyPath, assignments: Iterable[str] = ()) -> Config:
    """The configuration with the section that the pairs were made with.

    assignments: "section.field=value" that the caller asked for
    Raises:
        ManifestError: the pairs are unfinished.
        ValueError: they were made otherwise than the caller asked for.
    """
    made = loader.stored_config(pairs)
    found = replace(config, pairs=made)
    for text in assignments:
        if text.strip().startswith("pairs.") and override(found, [text]) != found:
            field = text.partition("=")[0].partition(".")[2].strip()
            raise ValueError(
                f"{text} does not fit: {pairs} was made with pairs.{field}={getattr(made, field)}. "
                "Leave it out, or make other pairs with jobs.prepare."
            )
    return found


def with_categories(config: Config, names: Sequence[str], category_ids: Sequence[int]) -> Config:
    """The configuration for a dataset's categories, both given by label."""
    return replace(
        config,
        model=replace(config.model, num_classes=len(names)),
        categories=tuple(names),
        category_ids=tuple(category_ids),
    )


def with_identities(config: Config, pairs: AnyPath) -> Config:
    """The configuration for a training set's instances: M for the identity head, or no head."""
    count = len(loader.number_instances(pairs)) if config.losses.identity > 0 else 0
    return replace(config, model=replace(config.model, num_identities=count))


class _Mailbox:
    """An actor: rank 0 puts its losses here, the driver takes them for bar and log."""

    def __init__(self) -> None:
        self._reports: list[Report] = []

    def put(self, step: int, values: dict[str, float]) -> None:
        self._reports.append((step, values))

    def take(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports


@contextlib.contextmanager
def _watched(total: int, log: experiment_log.Log | None) -> Iterator[Any]:
    """A mailbox whose reports move a progress bar, and are logged, while the block runs."""
    import ray

    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    over = threading.Event()

    def watch() -> None:
        with cluster.progress(total, "train", "steps") as bar:
            while True:
                last = over.wait(0.5)
                for step, values in ray.get(mailbox.take.remote()):
                    bar.update(step - bar.n)
                    bar.set_postfix_str(f"loss {values['loss']:.2f}")
                    if log is not None:
                        log.metrics(values, step)
                if last:
                    return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    patience = 10
    try:
        yield mailbox
        patience = 120  # on a busy machine the actor may have started only now
    finally:
        over.set()
        thread.join(patience)


@cluster.session(dashboard=True)
def _fit(loop: Loop, workers: int, gpus: bool, log: experiment_log.Log | None) -> AnyPath:
    """Run the loop on Ray Train; the folder of its last checkpoint."""
    from ray import train
    from ray.train.torch import TorchTrainer

    class Interruptible(TorchTrainer):  # type: ignore[misc]
        """With Ray's own handler a job that Ctrl-C has ended exits with status 0."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    training_loop.forget_divergence(loop.out)
    instead = "fewer --workers, or leave out --gpus" if gpus else "fewer --workers"
    cluster.require(max(workers, 1), gpus=1.0 if gpus else 0.0, instead=instead)
    probe.check(loop.out, [loop.pairs / manifest.MANIFEST])
    with (
        _watched(loop.config.train.steps, log) as mailbox,
        # Of Ray Train's own files none is needed again: a new run must not go on from them.
        tempfile.TemporaryDirectory(prefix="idol-train-", ignore_cleanup_errors=True) as unused,
    ):
        settings = {"loop": loop, "mailbox": mailbox}
        if not workers:  # not by Ray Train, which refuses to be asked inside a trial of Ray Tune
            training_loop.work(settings, Seat(device=torch.device("cuda" if gpus else "cpu")))
        else:
            result = Interruptible(
                training_loop.work,
                train_loop_config=settings,
                scaling_config=train.ScalingConfig(
                    num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": 1}
                ),
                run_config=train.RunConfig(
                    name="train",
                    storage_path=unused,
                    failure_config=train.FailureConfig(max_failures=3),
                ),
            ).fit()
            if result.error is not None:
                raise result.error
    training_loop.raise_diverged(loop.out)
    last = steps.folder(loop.out, loop.stop)
    if not (last / LOSSES).exists():
        raise RuntimeError(f"training ended, but {last} is not there")
    return last
