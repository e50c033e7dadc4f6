"""Several workers of Ray Train: what they learn together, and what becomes of it when one dies."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import idol
from idol import presets
from idol.config import Config, override
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from idol.learning import Diverged, divergence
from idol.learning.training import Trainer
from pipelines.errors import ManifestError
from pipelines.report import run_page
from pipelines.sources import annotations
from pipelines.stages import pairs, train
from pipelines.training import checkpoints, loop, seat
from pipelines.training.workers import Workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ALONE, TWO = Workers(count=0), Workers(count=2)
QUICK = (
    "transforms.stretch=[64,96]",
    "model.num_queries=12",
    "train.pairs_per_batch=3",
    "train.report_every=2",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=20",
)


@pytest.fixture(scope="module")
def prepared(ray_local, tmp_path_factory) -> Path:
    """Pairs of three videos."""
    root = tmp_path_factory.mktemp("train")
    path = write_dataset(root / "videos", SyntheticConfig.easy(), 3, 5)
    pairs.run(annotations.read(str(path)), root / "pairs", presets.by_name("tiny").pairs)
    return root / "pairs"


def quick(steps: int, *more: str) -> Config:
    return override(presets.by_name("tiny"), [*QUICK, f"train.steps={steps}", *more])


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory) -> Path:
    """What two workers learn in eight steps."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train.run(prepared, out, quick(8), workers=TWO)
    return out


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits and reported the same."""
    ours, theirs = (idol.load(p / train.WEIGHTS).state_dict() for p in (one, other))
    alike = all(torch.equal(ours[key], value) for key, value in theirs.items())
    return alike and run_page.curves(one) == run_page.curves(other)


def faulty_work(settings: dict[str, Any]) -> None:
    """A worker's training, in which what the test asks for goes wrong, once."""
    fault, place = settings["fault"], Path(settings["place"])
    worker, step = seat.RaySeat(), Trainer.step
    with (place / f"attempts-{worker.rank}").open("a") as attempts:
        attempts.write("x")

    def now(trainer: Trainer, at: int) -> bool:
        if trainer.step_number != at or worker.rank != 1 or (place / "done").exists():
            return False
        (place / "done").touch()
        return True

    def disturbed(self: Trainer, batch: Any) -> dict[str, float]:
        if fault == "worker" and now(self, 5):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "controller" and now(self, 5):
            (controller,) = titled("ray::TrainController")
            os.kill(controller, signal.SIGKILL)
            time.sleep(60)  # until this worker is ended
        if fault == "data" and now(self, 3):
            raise ManifestError("pairs", "is damaged", "Make it again.")
        if fault == "nan" and self.step_number == 2 and worker.rank == 1:
            batch.key_images[1] = float("nan")
        return step(self, batch)

    Trainer.step = disturbed  # type: ignore[method-assign]
    if fault == "leaving":
        seat.RaySeat.leaving = lambda self: True  # type: ignore[method-assign]
    commit = checkpoints.commit

    def full(folder: Any, files: Any) -> None:
        if fault == "full" and checkpoints.step_of(folder) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        commit(folder, files)

    checkpoints.commit = full
    loop_work(settings, worker)


loop_work = loop.work


def titled(title: str) -> list[int]:
    """The processes of this title."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if text.startswith(title.encode()):
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def disturb(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Makes the workers' training one in which something goes wrong."""

    def choose(fault: str) -> None:
        from ray.train.torch import TorchTrainer

        made = TorchTrainer.__init__

        def init(self: Any, work: Any, *, train_loop_config: dict[str, Any], **more: Any) -> None:
            config = {**train_loop_config, "fault": fault, "place": str(tmp_path)}
            made(self, faulty_work, train_loop_config=config, **more)

        monkeypatch.setattr(TorchTrainer, "__init__", init)

    return choose


def attempts(place: Path) -> int:
    return len((place / "attempts-1").read_text())


def test_two_workers_take_the_steps_together(prepared, tmp_path):
    config = quick(4, "losses.identity=1", "train.precision=bf16", "losses.normaliser=global")
    made = train.run(prepared, tmp_path / "two", config, workers=TWO)
    assert made.extra["workers"] == 2
    losses = [value for _, value in run_page.curves(tmp_path / "two")["loss"]]
    assert len(losses) == 2
    assert losses[1] < losses[0] * 1.5


def test_a_run_goes_on_with_another_number_of_workers(prepared, tmp_path):
    config = quick(6, "losses.reid_aux=0", "losses.normaliser=global")
    train.run(prepared, tmp_path / "one", config, workers=ALONE)
    out = tmp_path / "changed"
    train.advance(prepared, out, config, 2, workers=TWO)
    train.advance(prepared, out, config, 4, workers=Workers(count=1))
    assert train.run(prepared, out, config, workers=TWO, resume=True).extra["workers"] == 2
    ours, theirs = (idol.load(p / train.WEIGHTS).state_dict() for p in (out, tmp_path / "one"))
    # The same batches; the sums of two workers' gradients have other last bits.
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("victim", ["worker", "controller"])
def test_after_a_death_training_goes_on_and_ends_with_the_undisturbed_bits(
    prepared, undisturbed, tmp_path, disturb, victim, caplog
):
    disturb(victim)
    train.run(prepared, tmp_path / "run", quick(8), workers=TWO)
    assert attempts(tmp_path) == 2
    assert "training was interrupted" in caplog.text
    assert same(tmp_path / "run", undisturbed)


def test_a_machine_that_leaves_gets_a_checkpoint_at_once(prepared, undisturbed, tmp_path, disturb):
    disturb("leaving")
    train.run(prepared, tmp_path / "run", quick(8), workers=TWO)
    steps = [checkpoints.step_of(path) for path in checkpoints.complete(tmp_path / "run")]
    assert steps == [1, 2, 4, 6, 8]
    assert same(tmp_path / "run", undisturbed)


def test_a_loss_that_is_not_finite_is_told_by_the_worker_that_has_it(prepared, tmp_path, disturb):
    disturb("nan")
    with pytest.raises(Diverged, match=r"step 2, pairs 1 to 2 of its batch.*video \d+") as told:
        train.run(prepared, tmp_path / "run", quick(8), workers=TWO)
    assert attempts(tmp_path) == 1
    assert str(told.value).endswith("worker-1.pt")
    with pytest.raises(Diverged):
        divergence.replay(tmp_path / "run" / "diverged-step-00000002-worker-1.pt")


def test_damaged_data_is_told_at_once(prepared, tmp_path, disturb):
    disturb("data")
    with pytest.raises(Exception, match=r"pairs is damaged. Make it again."):
        train.run(prepared, tmp_path / "run", quick(8), workers=TWO)
    assert attempts(tmp_path) == 1


def test_a_full_disk_ends_training_with_the_checkpoint_before_and_it_goes_on_later(
    prepared, undisturbed, tmp_path, disturb, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context():
        disturb("full")
        with pytest.raises(Exception, match=r"No space left on device.*step-00000004"):
            train.run(prepared, out, quick(8), workers=TWO)
    assert attempts(tmp_path) == 1
    # Checkpoints are sent while training goes on: a later one can be whole before this is told.
    there = [checkpoints.step_of(path) for path in checkpoints.complete(out)]
    assert 2 in there
    assert 4 not in there
    monkeypatch.undo()
    train.run(prepared, out, quick(8), workers=TWO, resume=True)
    assert same(out, undisturbed)
