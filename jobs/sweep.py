"""Find the best tracker settings on what jobs.evaluate stored, or the best training settings.

python -m jobs.sweep --evaluation run --out sweep --uniform tracker.match_threshold=0.3,0.8
python -m jobs.sweep --pairs pairs --annotations val.json --out sweep \
    --log-uniform train.learning_rate=1e-4,1e-2
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from idol import presets
from idol.config import Config, override
from jobs.options import command, places
from pipelines.errors import intact
from pipelines.sweep import space as search_space
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Space

if TYPE_CHECKING:
    from pipelines.sweep import TrackerSweep, TrainingSweep

_TOLD = ("objective", "held_out", "configurations", "failed")  # as the manifest has them


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Find the tracker settings with the highest AP, HOTA or a mix, on stored detections; or, with
    --pairs, the training settings whose network scores best.

    Any field of the tracker can be swept: τ (tau), T (memory_length), the match threshold, the
    thresholds for new instances, mask NMS, lifetime of the memory, ... A configuration costs about
    half a millisecond per frame. OUT gets best.json (for --tracker of jobs.evaluate and
    jobs.track), report.json with every configuration and its metrics, and report.html: what
    mattered, and what the choice is worth on videos that had no say in it (cross-validation over
    folds of videos).

    With --pairs every trial trains on them, and is evaluated on --annotations; fields of train,
    losses, assignment, transforms and model can be swept. With --scheduler asha a trial trains for
    a part of the steps, and only the best go on. OUT then also has each trial's checkpoint.

    Every configuration is a trial of Ray Tune; stderr shows its table with the best so far.

    Interrupted, the same command, or --out OUT --resume, goes on; finished configurations are not
    repeated. A configuration that fails is listed with the reason, and the others go on.

    The last line of stdout is one JSON object: the best configuration, the one it started from, and
    the held-out scores.
    """

    evaluation: str | None = None
    """A finished OUT of jobs.evaluate, on annotations with truth: sweep its tracker."""
    pairs: str | None = None
    """A finished OUT of jobs.prepare: sweep training on it."""
    out: Annotated[str, places.FOLDER]
    """Directory to write: new, empty, or left unfinished by the same command. OUT and what it is
    made from may be addresses, such as s3://bucket/folder."""
    grid: command.Repeated = ()
    """SECTION.FIELD=A,B,C, such as tracker.tau=0,0.5,1: every combination is tried; repeat for more
    fields. Without any of these four: the numbers that matter most for this tracker, with their
    usual ranges."""
    choice: command.Repeated = ()
    """SECTION.FIELD=A,B,C: values to draw from."""
    uniform: command.Repeated = ()
    """SECTION.FIELD=LOW,HIGH: numbers to draw from a range, as --uniform
    tracker.match_threshold=0.3,0.8; whole numbers where the field is one."""
    log_uniform: command.Repeated = ()
    """The same, uniform in the logarithm."""
    search: Literal["grid", "random", "bayes"] | None = None
    """grid tries every combination of lists; random draws from lists and ranges; bayes draws where
    the results so far are good (Optuna). Default: grid where there is nothing but --grid, else
    bayes."""
    samples: int = SearchConfig().samples
    """Configurations that random and bayes try."""
    objective: str = SearchConfig().objective
    """What is maximised: AP, AP50, AP75, AR10, AP_ho, HOTA, AssA, DetA, IDF1, or a sum such as
    0.5*AP+0.5*HOTA. AP,HOTA: bayes draws where either is good, and the best has the highest
    mean."""
    folds: int = SearchConfig().folds
    """Cross-validation: every fold of the videos is scored with what was best on the others. 0: no
    held-out scores."""
    scheduler: Literal["fifo", "asha"] = SearchConfig().scheduler
    """fifo: every configuration gets everything. asha: it starts on few videos, or trains for few
    steps, and goes on only while it is among the best."""
    grace_period: int = SearchConfig().grace_period
    """Videos, or steps of training, that asha gives to every configuration."""
    reduction_factor: int = SearchConfig().reduction_factor
    """The best 1 / factor go on to so many times the videos or steps."""
    time_budget: float | None = None
    """Seconds after which no trial goes on, and the best so far is taken. Default: no limit."""
    seed: int = SearchConfig().seed
    """Of draws and folds."""
    tracker: str | None = None
    """What is compared with, and keeps the fields that are not swept: released, ovis, paper,
    multi_cue, robust, or a JSON file such as another sweep's best.json. Default: the tracker of the
    evaluation."""
    set: command.Repeated = ()
    """Replace a field of that, or of the preset, SECTION.FIELD=VALUE; repeat for more."""
    annotations: str | None = None
    """Where the annotation file is now, if it has moved since the evaluation. With --pairs: the
    annotation file, with truth, of other videos to evaluate on."""
    preset: str = "tiny"
    """With --pairs: the configuration to start from."""
    weights: str | None = None
    """With --pairs: what every trial starts from, as in jobs.train. Default: random."""
    reset_classes: command.Switch = False
    """With --pairs: as in jobs.train."""
    workers: int = 1
    """With --pairs: data-parallel workers of a trial, one CPU or GPU each; 0: inside the trial."""
    gpus: command.Switch = False
    """With --pairs: one GPU per worker."""
    reject_limit: command.RejectLimit = None
    resume: command.Switch = False
    """Go on with the unfinished sweep in OUT, with the settings that it was started with."""
    max_concurrent: int | None = None
    """Configurations at the same time. Default: half the logical CPUs; with --pairs, what fits."""
    overwrite: command.Switch = False
    """Delete an earlier sweep in OUT first. Never deletes anything else."""
    log_to: Annotated[Path | None, places.LOG] = None
    """Folder of the MLflow file. Default: OUT; without effect where MLFLOW_TRACKING_URI is set."""
    num_cpus: command.NumCpus = None
    dry_run: command.DryRun = False


def _sweep(job: Sweep) -> dict[str, object]:
    from pipelines import cluster
    from pipelines.stages import train
    from pipelines.storage import paths
    from pipelines.sweep import TrainingSweep, every_sweep, tracker_sweep, training_sweep

    out = paths.at(job.out)
    wanted = asked_for(job)
    if isinstance(wanted, TrainingSweep):
        wanted = replace(wanted, base=train.with_pairs(wanted.base, wanted.pairs, job.set))
    if job.dry_run:
        return _plan(job, wanted)
    how: dict[str, Any] = {"max_concurrent": job.max_concurrent, "time_budget": job.time_budget}
    how |= {"overwrite": job.overwrite, "log_to": job.log_to}
    with cluster.kept(job.num_cpus):
        if isinstance(wanted, TrainingSweep):
            manifest = training_sweep.run(wanted, out, **how)
        else:
            manifest = tracker_sweep.run(wanted, out, **how)
    best, base = manifest.extra["best"], manifest.extra["base"]
    return {
        "best": {**best["values"], **best["metrics"], "value": best["value"]},
        "base": {**base["values"], **base["metrics"], "value": base["value"]},
        **{name: manifest.extra[name] for name in _TOLD},
        "seconds": manifest.seconds,
        "paths": {name: str(out / file) for name, file in every_sweep.FILES.items()},
    }


def _plan(job: Sweep, wanted: TrackerSweep | TrainingSweep) -> dict[str, object]:
    """What would be tried; of a sweep of trainings each as its own plan says, one after another."""
    from pipelines import plan
    from pipelines.storage import layout, stored
    from pipelines.sweep import TrainingSweep
    from pipelines.training.workers import Workers

    count = wanted.search.planned(wanted.space)
    if isinstance(wanted, TrainingSweep):
        workers = Workers(count=wanted.workers, gpus=wanted.gpus)
        (one,) = plan.train(wanted.base, workers, True)
        stages = [replace(one, stage="sweep", work=f"{count} times {one.work}", shards=count)]
    else:
        source = stored.read(wanted.evaluated / layout.DETECTIONS)
        frames = sum(video.length for video in source.videos)
        stages = plan.sweep(count, frames, job.max_concurrent)
    return command.planned(stages, job.out)


def asked_for(job: Sweep) -> TrackerSweep | TrainingSweep:
    """What the command line asks for; ValueError: flags that do not go together."""
    from pipelines.storage import paths
    from pipelines.sweep import TrackerSweep, TrainingSweep, every_sweep, tracker_sweep

    fields = {name: getattr(job, name) for name in ("grid", "choice", "uniform", "log_uniform")}
    if job.resume:
        if job.evaluation or job.pairs or any(fields.values()) or job.set or job.overwrite:
            raise ValueError(
                "--resume goes on with what is in --out: leave out the flags that say what to "
                "sweep, or leave out --resume"
            )
        out = paths.at(job.out)
        plain = every_sweep.read_settings(out)
        with intact(out / every_sweep.SETTINGS):
            if "train" in plain:
                return TrainingSweep.from_dict(plain["train"])
            return TrackerSweep.from_dict(plain)
    if (job.evaluation is None) == (job.pairs is None):
        raise ValueError(
            "give --evaluation, a finished OUT of jobs.evaluate, to sweep its tracker; or --pairs, "
            "one of jobs.prepare, to sweep training"
        )
    if job.evaluation is not None:
        evaluated = paths.at(job.evaluation)
        tracker = tracker_sweep.base_config(evaluated, job.tracker, job.set)
        space = search_space.parse(fields, Config(tracker=tracker), search_space.TRACKER)
        space = space or search_space.association(tracker)
        return TrackerSweep(
            evaluated=evaluated,
            base=tracker,
            space=space,
            search=_search(job, space),
            annotation_file=job.annotations,
        )
    assert job.pairs is not None
    if job.annotations is None:
        raise ValueError("with --pairs, give --annotations: videos with truth to evaluate on")
    base = override(presets.by_name(job.preset), job.set)
    space = search_space.parse(fields, base, search_space.TRAINING)
    if not space:
        raise ValueError(
            "there is nothing to sweep: give --log-uniform train.learning_rate=1e-4,1e-2, ..."
        )
    return TrainingSweep(
        pairs=paths.at(job.pairs),
        annotations=job.annotations,
        base=base,
        space=space,
        search=_search(job, space),
        weights=job.weights,
        reset_classes=job.reset_classes,
        workers=job.workers,
        gpus=job.gpus,
        reject_limit=job.reject_limit,
    )


def _search(job: Sweep, space: Space) -> SearchConfig:
    drawn = len(space) > len(job.grid)
    return SearchConfig(
        method=job.search or ("bayes" if drawn else "grid"),
        samples=job.samples,
        objective=job.objective,
        # A training sees no truth of the videos that it is judged by.
        folds=job.folds if job.pairs is None else 0,
        scheduler=job.scheduler,
        grace_period=job.grace_period,
        reduction_factor=job.reduction_factor,
        seed=job.seed,
    )


main = functools.partial(command.run, "sweep", Sweep, _sweep)

if __name__ == "__main__":
    main()
