"""Pairs → weights: the Ray Train loop around `idol.learning`, data parallel over any workers."""

from __future__ import annotations

import contextlib
import errno
import logging
import pickle
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from idol.config import Config, override, to_dict
from idol.learning.pieces import part_of_batch
from idol.weights import checkpoint
from idol.weights.report import CheckpointError
from pipelines import cluster, preflight, resources
from pipelines.batches import loader, pair_sets
from pipelines.batches.pair_sets import Pairs, PairSets
from pipelines.errors import ManifestError, PipelineError, ResourcesError, origin
from pipelines.report import experiment_log
from pipelines.stages.validation import Validation
from pipelines.storage import claims, manifest, paths
from pipelines.storage.layout import LOSSES, TRAIN
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.training import checkpoints, loop, measures, networks, seat
from pipelines.training.checkpoints import Report
from pipelines.training.initial_model import Start, initial_model
from pipelines.training.loop import START, Loop
from pipelines.training.watch import Watch
from pipelines.training.workers import Workers

WEIGHTS = checkpoints.WEIGHTS
"""The result: weights to evaluate with (the average where there is one), and their config."""
_TRIES = 4  # without a new checkpoint
_LASTING = (PipelineError, CheckpointError, ValueError, TypeError, ArithmeticError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors that another try does not end."""
_VARIABLES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""Between two looks of Ray Train's controller; its own 2 s delay every report."""
_NO_WATCHER = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """What is looked at while a training runs; nothing of it changes the weights.

    validation: videos to score on every config.validation.every steps
    profile:    steps to record with torch's profiler
    log_to:     folder of the MLflow file that losses, scores and speed are logged to; None: no
                MLflow run
    """

    validation: Validation | None = None
    profile: int = 0
    log_to: AnyPath | None = None


_RANDOM, _TWO, _UNWATCHED = Start(), Workers(), Watching()


def run(
    pairs: Pairs,
    out: AnyPath,
    config: Config,
    start: Start = _RANDOM,
    workers: Workers = _TWO,
    watching: Watching = _UNWATCHED,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Train on the pairs of a finished prepare directory.

    pairs:     output of pairs.run; its categories decide the class heads, its instances the
               identity head where config.losses.identity asks for one, and its configuration is
               recorded in the place of config.pairs. Of several outputs, with the same categories,
               that of the first, and those of all in the manifest's config["pair_sets"]
    out:       gets checkpoint.safetensors, best.safetensors where there are validations,
               losses.json, checkpoints/ and the manifest. With workers on several machines it must
               be storage that all of them see.
    start:     weights to start from
    resume:    go on at the newest checkpoint of a run that was killed; it may have had another
               number of workers: the batches are the same, sums of floats are not
    overwrite: delete an earlier output first
    Raises:
        ManifestError: the pairs are unfinished, or out holds a training that is unfinished and
                       resume is not asked for.
        ValueError: more workers than pairs in a batch, both kinds of weights are given, or the
                    categories of several outputs differ.
        CheckpointError: the weights do not fit.
        Diverged: a loss or gradient is not finite. The message names the pairs and the file to
                  compute that step again from; nothing is tried again.
    """
    output, settings = _begin(
        pairs, out, config, start, workers, watching, resume=resume, overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    with contextlib.ExitStack() as stack:
        log = None
        if watching.log_to is not None:
            log = stack.enter_context(_log_of(output, settings, watching.log_to))
        last = _fit(settings, workers, log)
        with paths.local_file(last / WEIGHTS) as made, paths.whole_file(out / WEIGHTS) as temporary:
            shutil.copyfile(made, temporary)
        curve = checkpoints.read_curve(last)
        manifest.commit_json(curve, out / LOSSES)
        if log is not None:
            more: list[AnyPath] = [*(out / loop.PICTURES).glob("*.jpg"), out / measures.TRACE]
            log.artifacts(out / LOSSES, *(path for path in more if path.exists()))
    (out / START).unlink(missing_ok=True)
    best = loop.best_step(curve, settings.config.validation.metric)
    extra = {
        "steps": checkpoints.step_of(last),
        "workers": workers.most,
        "seconds_training": round(time.monotonic() - output.started_at, 1),
        "last_losses": curve[-1][1] if curve else {},
        "best": None if best is None else {"step": best, **dict(curve)[best]},
    }
    return output.finish(rows=checkpoints.step_of(last), extra=extra)


def _log_of(
    output: claims.Output, settings: Loop, folder: AnyPath
) -> contextlib.AbstractContextManager[experiment_log.Log]:
    """The MLflow run: of a training that goes on, the one that it has had."""
    return experiment_log.run(
        folder,
        f"train {output.path.name}",
        to_dict(settings.config),
        tags={
            "code": output.code_version,
            "pairs": str(settings.pairs),
            "data": output.input_hash,
        },
        about=manifest.hash_value([str(settings.out), output.config, output.input_hash]),
        go_on=checkpoints.newest_step(settings.out) > 0,
    )


def advance(
    pairs: Pairs,
    out: AnyPath,
    config: Config,
    until: int,
    start: Start = _RANDOM,
    workers: Workers = _TWO,
) -> AnyPath:
    """Train up to a step, in the schedule of all config.train.steps; the weights so far.

    A later call with more steps, or run, goes on from here. Arguments as of run.

    until: config.train.steps or more finish the run
    """
    if until >= config.train.steps:
        run(pairs, out, config, start, workers, resume=True)
        checkpoints.clear(out)
        return out / WEIGHTS
    output, settings = _begin(
        pairs, out, config, start, workers, Watching(), resume=True, overwrite=False
    )
    if output.finished is not None:
        return out / WEIGHTS
    if checkpoints.newest_step(out) < until:
        _fit(replace(settings, stop=until), workers, None)
    return checkpoints.complete(out)[-1] / WEIGHTS


def _begin(
    pairs: Pairs,
    out: AnyPath,
    config: Config,
    start: Start,
    workers: Workers,
    watching: Watching,
    *,
    resume: bool,
    overwrite: bool,
) -> tuple[claims.Output, Loop]:
    """Claim the directory and put the first weights there."""
    sets = pair_sets.of(pairs)
    config = _fitted(sets, config, workers)
    settings = Loop(
        config=config,
        pairs=sets.resolve(),
        out=out.resolve(),
        stop=config.train.steps,
        threads=workers.cpus,
        validator=watching.validation,
        profile=watching.profile,
    )
    known = not overwrite and any((out / f).exists() for f in (manifest.STARTED, manifest.MANIFEST))
    # What does not fit must fail before a directory is made; what is done needs no weights.
    model = None if known else initial_model(config, start)
    if watching.validation is not None:
        _check_validation(watching.validation, config)
    claim = {"config": to_dict(config), **start.recorded(), **sets.recorded()}
    output = claims.prepare_output(out, TRAIN, claim, sets.input_hash(), overwrite=overwrite)
    if output.finished is not None:
        return output, settings
    if overwrite:
        checkpoints.clear(out)
        paths.remove_tree(out / loop.PICTURES)
    reached = checkpoints.newest_step(out)
    if reached and not resume:
        raise ManifestError(
            str(out),
            f"holds a training that ended at step {reached} of {config.train.steps}, unfinished",
            "Add --resume to go on from there, or --overwrite to begin anew.",
        )
    if not reached:
        with paths.whole_file(out / START) as temporary:
            checkpoint.save(model or initial_model(config, start), temporary)
    return output, settings


def _fitted(sets: PairSets, config: Config, workers: Workers) -> Config:
    """The configuration for the pairs."""
    config = with_categories(with_pairs(config, sets), *sets.categories())
    for directory, made in zip(sets.directories, sets.configs(), strict=True):
        pairs = networks.takes_pairs(config)
        if config.model.method == "idol" and pairs != (made.clip == 2):
            wanted = "pairs of frames: pairs.clip=2" if pairs else "clips: pairs.clip of 3 or more"
            raise ValueError(
                f"losses.contrast={config.losses.contrast} learns from {wanted}, but {directory} "
                f"was made with pairs.clip={made.clip}. Prepare it again."
            )
    part_of_batch(config.train.pairs_per_batch, 0, max(workers.most, 1))  # none has no pair
    return with_identities(config, sets)


def _check_validation(wanted: Validation, config: Config) -> None:
    """Raise what the workers would, and tell which videos are left out."""
    dataset, _ = wanted.read(config)
    if not dataset.videos:
        raise ValueError(f"{wanted.annotations} has no video that can be read to validate on")
    for reject in dataset.rejects:
        _log.warning("video %s is left out of validation: %s", reject.video_id, reject.reason)


def with_pairs(config: Config, pairs: Pairs, assignments: Iterable[str] = ()) -> Config:
    """The configuration with the section that the pairs, or the first of them, were made with.

    assignments: "section.field=value" that the caller asked for
    Raises:
        ManifestError: the pairs are unfinished.
        ValueError: they were made otherwise than the caller asked for.
    """
    sets = pair_sets.of(pairs)
    every = sets.configs()
    asked = [text for text in assignments if text.strip().startswith("pairs.")]
    for directory, made in zip(sets.directories, every, strict=True):
        found = replace(config, pairs=made)
        for text in asked:
            if override(found, [text]) != found:
                field = text.partition("=")[0].partition(".")[2].strip()
                raise ValueError(
                    f"{text} does not fit: {directory} was made with "
                    f"pairs.{field}={getattr(made, field)}. "
                    "Leave it out, or make other pairs with jobs.prepare."
                )
    return replace(config, pairs=every[0])


def with_categories(config: Config, names: Sequence[str], category_ids: Sequence[int]) -> Config:
    """The configuration for a dataset's categories, both given by label."""
    return replace(
        config,
        model=replace(config.model, num_classes=len(names)),
        categories=tuple(names),
        category_ids=tuple(category_ids),
    )


def with_identities(config: Config, pairs: Pairs) -> Config:
    """The configuration for a training set's instances: M for the identity head, or no head."""
    count = sum(map(len, loader.number_instances(pairs))) if config.losses.identity > 0 else 0
    return replace(config, model=replace(config.model, num_identities=count))


def _fit(settings: Loop, workers: Workers, log: experiment_log.Log | None) -> AnyPath:
    """Train until the last step, or until validation gets no better; its checkpoint's folder."""
    config, out = settings.config, settings.out
    loop.forget_divergence(out)
    checkpoints.prune(out, config.train.keep_checkpoints)
    with contextlib.closing(Watch(config.train.steps, log)) as watch:
        watch.begin(_curve(out))
        if not workers.most:  # not by Ray Train, which refuses to be asked inside a trial of Tune
            if workers.gpus and not torch.cuda.is_available():
                raise ResourcesError("torch sees no GPU here. Leave out --gpus, or use --workers.")
            device = torch.device("cuda" if workers.gpus else "cpu")
            loop.work({"loop": pickle.dumps(settings)}, seat.Seat(device, watch.tell))
        else:
            _fit_on_ray(settings, workers, watch)
        loop.raise_diverged(out)
        curve = _curve(out)
        watch.fill(curve)
    checkpoints.prune(out, config.train.keep_checkpoints)
    reached = curve[-1][0] if curve else 0
    if reached < settings.stop:
        if not loop.stalled(curve, config):
            last = checkpoints.folder(out, settings.stop)
            raise RuntimeError(f"training ended, but {last} is not there")
        told = "training ended at step %d of %d: %d validations in a row were no better"
        _log.warning(told, reached, settings.stop, config.validation.patience)
    return checkpoints.folder(out, reached)


def _curve(out: AnyPath) -> list[Report]:
    """The reports until the newest checkpoint."""
    found = checkpoints.complete(out)
    return checkpoints.read_curve(found[-1]) if found else []


@cluster.session()
def _fit_on_ray(settings: Loop, workers: Workers, watch: Watch) -> None:
    """Run the workers, again and again while that brings new checkpoints.

    Ray Train's own count of failures does not know progress, and an error of the data has the same
    end each time.
    """
    from ray import train
    from ray.exceptions import RayActorError
    from ray.train.torch import TorchTrainer

    class Interruptible(TorchTrainer):  # type: ignore[misc]
        """With Ray's own handler a job that Ctrl-C has ended exits with status 0."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    out, tries = settings.out, 0
    instead = "fewer --workers, or leave out --gpus" if workers.gpus else "fewer --workers"
    gpus = 1.0 if workers.gpus else 0.0
    resources.require(workers.least, float(workers.cpus), gpus, instead=instead)
    workers.check_labels()
    preflight.check(out, settings.pairs.manifest_files, gpus=gpus, network=True)
    # Nobody takes this machine away; the watcher is one more process that imports Ray.
    watcher = _NO_WATCHER if cluster.own() else {}
    while True:
        reached = checkpoints.newest_step(out)
        try:
            with cluster.environment(_VARIABLES | watcher), watch.callback() as callback:
                Interruptible(
                    loop.work,
                    # As bytes, so that the controller need not import what workers do.
                    train_loop_config={"loop": pickle.dumps(settings)},
                    scaling_config=workers.scaling(),
                    run_config=train.RunConfig(
                        **seat.storage(out),
                        checkpoint_config=train.CheckpointConfig(
                            num_to_keep=settings.config.train.keep_checkpoints
                        ),
                        callbacks=[callback],
                    ),
                ).fit()
            return
        except (train.TrainingFailedError, RayActorError) as error:
            cause = origin(error)
            if isinstance(cause, _LASTING) or getattr(cause, "errno", None) in _FULL:
                raise
            step = checkpoints.newest_step(out)
            tries = 1 if step > reached else tries + 1
            if tries >= _TRIES:
                raise
            told = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
            _log.warning("training was interrupted (%s) and goes on from step %d", told, step)
            watch.fill(_curve(out))  # what died before it was told
            checkpoints.prune(out, settings.config.train.keep_checkpoints)
