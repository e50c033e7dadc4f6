"""All stages in one call: prepare, train, evaluate, sweep, and one page about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idol.config import Config
from pipelines.report import run_page
from pipelines.sources import annotations as annotation_files
from pipelines.stages import evaluate, pairs, train
from pipelines.storage.reports import EvaluationReport
from pipelines.sweep import tracker_sweep
from pipelines.training.initial_model import Start
from pipelines.training.workers import Workers

PAIRS, TRAIN, EVALUATE, SWEEP, PAGE = "pairs", "train", "evaluate", "sweep", "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """What the stages read and how they are set.

    train_files:      annotation JSON to train on
    validation_files: annotation JSON to evaluate on, by the name of the set
    weights:          what to start from (idol.load); None: random
    reset_classes:    start class heads for other categories from random weights
    workers:          data-parallel training processes, one GPU each with gpus
    grid:             field of TrackerConfig -> values, swept on the set named sweep_set;
                      empty: no sweep
    """

    train_files: Sequence[str]
    validation_files: Mapping[str, str]
    config: Config
    weights: str | None = None
    reset_classes: bool = False
    workers: int = 2
    gpus: bool = False
    grid: Mapping[str, Sequence[Any]]
    sweep_set: str = ""


def run(walk: Walk, out: Path, *, commands: Mapping[str, str]) -> dict[str, Any]:
    """Run all stages. What is finished is kept: the same call goes on where it was.

    out:      gets pairs/, train/, evaluate/NAME/, sweep/, report.html and MLflow's file
    commands: shown in the page: how to do this, or a part of it, again
    returns:  {"sets": {name: metrics}, "sweep": ..., "page": path, "seconds": {stage: s}}
    Raises: what the stages raise. Call it inside cluster.kept()
    """
    seconds: dict[str, float] = {}
    dataset = annotation_files.combine([annotation_files.read(path) for path in walk.train_files])
    seconds["prepare"] = pairs.run(dataset, out / PAIRS, walk.config.pairs).seconds
    seconds["train"] = train.run(
        out / PAIRS,
        out / TRAIN,
        walk.config,
        Start(weights=walk.weights, reset_classes=walk.reset_classes),
        Workers(count=walk.workers, gpus=walk.gpus),
        train.Watching(log_to=out),
        resume=True,
    ).seconds
    checkpoint = out / TRAIN / train.WEIGHTS
    sets: dict[str, dict[str, float | None]] = {}
    for name, path in walk.validation_files.items():
        request = evaluate.Request(annotations=path, checkpoint=checkpoint)
        done = evaluate.run(request, out / EVALUATE / name, log_to=out)
        seconds[f"evaluate {name}"] = done.seconds
        sets[name] = EvaluationReport.read(out / EVALUATE / name).headline()
    result: dict[str, Any] = {"sets": sets, "seconds": seconds}
    if walk.grid:
        evaluated = out / EVALUATE / walk.sweep_set
        base, space = tracker_sweep.base_config(evaluated), tracker_sweep.grid(walk.grid)
        wanted = tracker_sweep.TrackerSweep(evaluated=evaluated, base=base, space=space)
        swept = tracker_sweep.run(wanted, out / SWEEP, log_to=out)
        seconds["sweep"] = swept.seconds
        result["sweep"] = swept.extra
    page = run_page.write(
        out / PAGE,
        title="IDOL: one walk",
        training=out / TRAIN,
        evaluations={name: out / EVALUATE / name for name in walk.validation_files},
        swept=out / SWEEP if walk.grid else None,
        commands=commands,
    )
    return result | {"page": str(page)}
