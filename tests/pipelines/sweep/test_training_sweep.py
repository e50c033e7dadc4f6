"""Training sweeps: trials go on where their rung ended, and the best can be trained again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

import idol
from idol import presets
from idol.config import override
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from jobs import sweep as job
from pipelines.report import run_page
from pipelines.sources import annotations
from pipelines.stages import pairs, train
from pipelines.storage import layout
from pipelines.storage.sweep_report import Configuration
from pipelines.sweep import every_sweep, space, training_sweep
from pipelines.sweep.objective import Objective
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Choices
from pipelines.sweep.training_sweep import TrainingSweep, TrainingTrials
from pipelines.training.workers import Workers

QUICK = (
    "transforms.stretch=[64,96]",
    "model.num_queries=12",
    "train.pairs_per_batch=2",
    "train.report_every=1",
    "train.checkpoint_every=50",
    "train.steps=4",
    "losses.reid_aux=0",  # draws at random, and a resumed run draws anew
)


@pytest.fixture(scope="module")
def wanted(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> TrainingSweep:
    """Three steps of learning rate on a few small videos, evaluated on others."""
    root = tmp_path_factory.mktemp("train-sweep")
    config = SyntheticConfig(size=(64, 96), length=(4, 6), num_objects=(1, 3))
    base = override(presets.by_name("tiny"), QUICK)
    learn, judge = (
        write_dataset(root / name, config, 3, seed) for seed, name in enumerate(("learn", "judge"))
    )
    pairs.run(annotations.read(str(learn)), root / "pairs", base.pairs)
    return TrainingSweep(
        pairs=root / "pairs",
        annotations=str(judge),
        base=base,
        space={"train.learning_rate": Choices((1e-4, 1e-3, 1e-2))},
        search=SearchConfig(scheduler="asha", reduction_factor=2, grace_period=2, folds=0),
        workers=0,
    )


@pytest.mark.slow
@pytest.mark.ray
def test_a_trial_goes_on_at_its_next_rung_and_tells_what_it_really_used(
    wanted: TrainingSweep, tmp_path: Path
) -> None:
    trials = TrainingTrials(wanted, Objective("AP", {"AP": 1.0}), tmp_path)
    values = {"train.learning_rate": 1e-3}
    of = Configuration(number=3, hash=trials.identify(values), values=values)
    rungs = trials.measure(None, of, 0)
    first = next(rungs)
    assert first.budget == 2
    folder = trials.folder(of) / "train"
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000002"]
    # Begun again, as after a kill: nothing is trained twice.
    before = (folder / "checkpoints" / "step-00000002" / train.WEIGHTS).stat().st_mtime_ns
    assert next(trials.measure(None, of, 0)) == first
    assert (folder / "checkpoints" / "step-00000002" / train.WEIGHTS).stat().st_mtime_ns == before
    (whole,) = trials.measure(None, of, 2)
    assert whole == next(rungs)
    assert whole.hash == of.hash
    assert whole.metrics["AP"] >= 0
    config = trials.config(values)
    assert idol.load(folder / train.WEIGHTS).config.train == config.train
    curve = [step for step, _ in run_page.curves(folder)["loss"]]
    assert curve == [1, 2, 3, 4]
    # The same as a training that never stopped.
    straight = tmp_path / "straight"
    train.run(wanted.pairs, straight, config, workers=Workers(count=0))
    ours, theirs = (idol.load(p / train.WEIGHTS).state_dict() for p in (folder, straight))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_what_cannot_be_swept_by_training_is_refused(wanted: TrainingSweep, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    with pytest.raises(ValueError, match=r"train\.steps is what a trial may spend"):
        training_sweep.run(replace(wanted, space={"train.steps": Choices((1, 2))}), out)
    with pytest.raises(ValueError, match="lacks HOTA"):
        training_sweep.run(replace(wanted, search=SearchConfig(objective="HOTA")), out)
    assert not out.exists()
    assert TrainingSweep.from_dict(wanted.to_dict()) == wanted


def test_the_command_line_asks_for_training(wanted: TrainingSweep, tmp_path: Path) -> None:
    def asked(*flags: str) -> Any:
        return job.asked_for(tyro.cli(job.Sweep, args=["--out", str(tmp_path), *flags]))

    found = asked(
        "--pairs", str(wanted.pairs), "--annotations", wanted.annotations,
        "--log-uniform", "train.learning_rate=1e-4,1e-2", "--choice", "losses.mask=1,2",
        "--set", "train.steps=9", "--scheduler", "asha", "--grace-period", "1",
    )  # fmt: skip
    assert isinstance(found, TrainingSweep)
    assert found.base.train.steps == 9
    assert found.search == SearchConfig(method="bayes", scheduler="asha", grace_period=1, folds=0)
    assert found.space == space.parse(
        {"choice": ["losses.mask=1,2"], "log_uniform": ["train.learning_rate=1e-4,1e-2"]},
        found.base,
        space.TRAINING,
    )
    for flags, message in (
        (["--pairs", "p"], "give --annotations"),
        (["--pairs", "p", "--annotations", "a"], "nothing to sweep"),
        (["--pairs", "p", "--evaluation", "e"], "give --evaluation"),
        (
            ["--pairs", "p", "--annotations", "a", "--grid", "tracker.tau=1"],
            "cannot be swept by training",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            asked(*flags)


@pytest.mark.ray
@pytest.mark.slow
def test_trials_train_under_ray_and_poor_ones_stop_early(
    ray_local: None, wanted: TrainingSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "sweep"
    found = training_sweep.run(replace(wanted, workers=1), out, max_concurrent=1)
    table = json.loads((out / layout.REPORT).read_text())
    assert found.extra["configurations"] == 4
    budgets = [row["budget"] for row in table["trials"]]
    assert budgets[0] == 4
    assert budgets[1] == 4  # ASHA lets the first one on, with nothing to compare it with
    assert set(budgets) <= {2, 4}
    best = json.loads((out / every_sweep.BEST).read_text())
    assert Path(best["checkpoint"]).is_file()
    chosen = override(wanted.base, best["set"])
    assert chosen.train.learning_rate == idol.load(best["checkpoint"]).config.train.learning_rate
    assert training_sweep.run(replace(wanted, workers=1), out) == found
