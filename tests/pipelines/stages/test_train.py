"""Training runs: finished, resumed, started from other weights, and refused."""

import gzip
import json
import shutil
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import idol
from idol import presets
from idol.config import override, to_dict
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from idol.learning import Diverged, divergence
from idol.learning.training import Trainer
from idol.weights import checkpoint
from idol.weights.hub import FetchError
from idol.weights.released import PREFIXES, from_released
from idol.weights.report import CheckpointError
from pipelines.batches import loader, pair_sets
from pipelines.errors import ManifestError
from pipelines.report import experiment_log, run_page
from pipelines.sources import annotations
from pipelines.stages import evaluate, pairs, train, validation
from pipelines.stages.train import Watching
from pipelines.stages.validation import Validation
from pipelines.storage import claims, manifest
from pipelines.storage.layout import LOSSES
from pipelines.training import checkpoints, loop
from pipelines.training.initial_model import Start, initial_model
from pipelines.training.workers import Workers

pytestmark = pytest.mark.ray

ALONE = Workers(count=0)
QUICK = (
    "transforms.stretch=[64,96]",
    "model.num_queries=12",
    "train.pairs_per_batch=2",
    "train.report_every=2",
    "train.checkpoint_every=2",
)


@pytest.fixture(scope="module")
def prepared(ray_local, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("train")
    path = write_dataset(root / "videos", SyntheticConfig.easy(), 3, 5)
    config = presets.by_name("tiny").pairs
    pairs.run(annotations.read(str(path)), root / "pairs", config)
    return root / "pairs"


def quick(steps, *more):
    return override(presets.by_name("tiny"), [*QUICK, f"train.steps={steps}", *more])


def test_a_run_leaves_weights_curve_and_manifest(prepared, tmp_path):
    config = quick(4, "pairs.max_gap=1")
    made = train.run(
        prepared, tmp_path / "run", config, workers=ALONE, watching=Watching(log_to=tmp_path)
    )
    model = idol.load(tmp_path / "run" / train.WEIGHTS)
    assert model.config.categories == ("star", "fish", "flower", "cross")
    assert model.config.category_ids == (1, 2, 3, 4)
    curves = run_page.curves(tmp_path / "run")
    assert [step for step, _ in curves["loss"]] == [2, 4]
    (logged,) = experiment_log.runs(tmp_path)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["loss"] == curves["loss"][-1][1]
    # Told while it runs, and not part of what equal runs have in common.
    assert logged.data.metrics["images_per_second"] > 0
    assert 0 <= logged.data.metrics["data_wait_share"] <= 1
    assert not {"images_per_second", "data_wait_share"} & set(curves)
    assert made.extra["steps"] == 4
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "_manifest.json", "checkpoint.safetensors", "checkpoints", "losses.json", "rejects.parquet"
    ]  # fmt: skip
    # What the pairs were made with is recorded, whatever the configuration says of pairs.
    assert model.config.pairs == presets.by_name("tiny").pairs
    assert made.config["config"]["pairs"] == to_dict(presets.by_name("tiny").pairs)
    assert (
        train.run(
            prepared, tmp_path / "run", quick(4), workers=ALONE, watching=Watching(log_to=tmp_path)
        )
        == made
    )
    assert len(experiment_log.runs(tmp_path)) == 1


def same_bits(one, other):
    ours, theirs = (idol.load(p / train.WEIGHTS).state_dict() for p in (one, other))
    return all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_run_that_died_goes_on_with_its_bits_when_asked_to(prepared, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    train.run(prepared, whole, quick(4), workers=ALONE)
    out = tmp_path / "run"
    logged = Watching(log_to=tmp_path)
    steps = []
    step = loop.Trainer.step

    def dies_at_three(self, batch):
        if self.step_number == 3 and len(steps) == 3:
            steps.append("died")
            raise KeyboardInterrupt
        steps.append(self.step_number)
        return step(self, batch)

    monkeypatch.setattr(loop.Trainer, "step", dies_at_three)
    with pytest.raises(KeyboardInterrupt):
        train.run(prepared, out, quick(4), workers=ALONE, watching=logged)
    assert not (out / "_manifest.json").exists()
    with pytest.raises(ManifestError, match=r"ended at step 2 of 4, unfinished. Add --resume"):
        train.run(prepared, out, quick(4), workers=ALONE, watching=logged)
    train.run(prepared, out, quick(4), workers=ALONE, watching=logged, resume=True)
    # Step 2 was after the last checkpoint: done again, and nothing before it.
    assert steps == [0, 1, 2, "died", 2, 3]
    assert same_bits(out, whole)
    assert (out / LOSSES).read_text() == (whole / LOSSES).read_text()
    # One run in the log, without a gap and without a step twice.
    (run,) = experiment_log.runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.tags["data"] == manifest.read(prepared).hash
    with experiment_log.run(tmp_path, "reader", {}) as reader:
        history = reader.client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [2, 4]
    # Begun anew it is another run.
    train.run(prepared, out, quick(4), workers=ALONE, watching=logged, overwrite=True)
    assert len(experiment_log.runs(tmp_path)) == 3
    assert same_bits(out, whole)


def test_the_newest_checkpoints_are_kept(prepared, tmp_path):
    config = quick(6, "train.keep_checkpoints=2")
    train.run(prepared, tmp_path / "a", config, workers=ALONE)
    found = [checkpoints.step_of(path) for path in checkpoints.complete(tmp_path / "a")]
    assert found == [4, 6]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> str:
    """Two videos that training does not see."""
    path = tmp_path_factory.mktemp("labelled")
    return str(write_dataset(path, SyntheticConfig.easy(), 2, 9))


def test_scores_while_training_are_those_of_an_evaluation(prepared, labelled, tmp_path):
    config = quick(4, "validation.every=3", "validation.metric=HOTA", "train.ema_decay=0.9")
    watching = Watching(validation=Validation(annotations=labelled), log_to=tmp_path)
    made = train.run(prepared, tmp_path / "a", config, workers=ALONE, watching=watching)
    curves = run_page.curves(tmp_path / "a")
    assert [step for step, _ in curves["validation_AP"]] == [3, 4]
    request = evaluate.Request(annotations=labelled, checkpoint=tmp_path / "a" / train.WEIGHTS)
    found = evaluate.run(request, tmp_path / "e", log=False).extra["metrics"]
    assert curves["validation_AP"][-1][1] == found["AP"]
    assert curves["validation_AP50"][-1][1] == found["AP50"]
    best = idol.load(tmp_path / "a" / loop.BEST)
    chosen = max(curves["validation_HOTA"], key=lambda point: (point[1], -point[0]))
    assert made.extra["best"]["step"] == chosen[0]
    assert made.extra["best"]["validation_HOTA"] == chosen[1]
    if chosen[0] == 4:
        assert torch.equal(best.level_embed, idol.load(request.checkpoint).level_embed)
    # Training itself is not changed by it.
    plain = quick(4, "train.ema_decay=0.9")
    train.run(prepared, tmp_path / "b", plain, workers=ALONE)
    assert same_bits(tmp_path / "a", tmp_path / "b")
    (run,) = (r for r in experiment_log.runs(tmp_path) if r.info.run_name == "train a")
    assert run.data.metrics["validation_AP"] == found["AP"]
    for step in (3, 4):
        picture = cv2.imread(str(tmp_path / "a" / loop.PICTURES / f"step-{step:08d}.jpg"))
        assert picture.shape[1] == 3 * 320


def test_training_ends_when_validation_gets_no_better(
    prepared, labelled, tmp_path, monkeypatch, caplog
):
    scores = iter([0.2, 0.3, 0.3, 0.1, 0.9])
    monkeypatch.setattr(
        validation.OnlineScores, "__call__", lambda self, weights: ({"AP": next(scores)}, None)
    )
    config = quick(20, "validation.every=2", "validation.patience=2")
    watching = Watching(validation=Validation(annotations=labelled))
    made = train.run(prepared, tmp_path / "a", config, workers=ALONE, watching=watching)
    assert (made.extra["steps"], made.extra["best"]["step"]) == (8, 4)
    assert "ended at step 8 of 20: 2 validations in a row were no better" in caplog.text
    assert train.run(prepared, tmp_path / "a", config, workers=ALONE, watching=watching) == made


@pytest.mark.parametrize("what", ["no truth", "other categories"])
def test_labels_that_cannot_validate_are_refused_at_once(prepared, labelled, tmp_path, what):
    truth = json.loads(Path(labelled).read_text())
    if what == "no truth":
        truth["annotations"] = None
    else:
        truth["categories"][0]["name"] = "zebra"
    path = Path(labelled).with_name("other.json")
    path.write_text(json.dumps(truth))
    watching = Watching(validation=Validation(annotations=str(path)))
    said = "holds no truth" if what == "no truth" else "'zebra' in the dataset"
    with pytest.raises(ValueError, match=said):
        train.run(prepared, tmp_path / "a", quick(2), workers=ALONE, watching=watching)
    assert not (tmp_path / "a").exists()


def test_a_profile_is_a_trace_of_steps(prepared, tmp_path):
    train.run(prepared, tmp_path / "a", quick(6), workers=ALONE, watching=Watching(profile=1))
    events = json.loads(gzip.decompress((tmp_path / "a/trace.json.gz").read_bytes()))
    names = {event.get("name") for event in events["traceEvents"]}
    assert any("ProfilerStep" in str(name) for name in names)
    assert any("convolution" in str(name) for name in names)


def test_a_loss_that_is_not_finite_ends_training_at_once(prepared, tmp_path, monkeypatch):
    taken = []
    step = Trainer.step

    def poisoned(self, batch):
        taken.append(self.step_number)
        if self.step_number == 2:
            batch.key_images[1] = float("nan")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", poisoned)
    out = tmp_path / "run"
    with pytest.raises(Diverged, match=r"step 2, pairs 1 to 1 .*video \d+, frames") as told:
        train.run(prepared, out, quick(4, "train.micro_batch=1"), workers=ALONE)
    assert taken == [0, 1, 2]
    assert str(told.value).endswith("diverged-step-00000002-worker-0.pt")
    with pytest.raises(Diverged, match="must be finite"):
        divergence.replay(out / "diverged-step-00000002-worker-0.pt")
    # With the fault mended, the same command goes on from the last checkpoint.
    monkeypatch.setattr(Trainer, "step", step)
    again = train.run(prepared, out, quick(4, "train.micro_batch=1"), workers=ALONE, resume=True)
    assert again.extra["steps"] == 4
    assert not list(out.glob("diverged-*"))


def test_other_categories_start_new_class_heads_only_when_asked(prepared, tmp_path):
    other = override(quick(2), ["model.num_classes=9"])
    weights = str(checkpoint.save(idol.IDOL(other), tmp_path / "nine.safetensors"))
    with pytest.raises(ValueError, match="--reset-classes"):
        train.run(prepared, tmp_path / "a", quick(2), Start(weights=weights), ALONE)
    assert not (tmp_path / "a").exists()
    train.run(prepared, tmp_path / "a", quick(2), Start(weights=weights, reset_classes=True), ALONE)
    assert idol.load(tmp_path / "a" / train.WEIGHTS).config.model.num_classes == 4


@pytest.mark.parametrize("names", [["bolt", "nut", "gear", "pin"], ["DISC", "box", "star", "ring"]])
def test_other_categories_of_the_same_number_are_other_categories(tmp_path, names, caplog):
    known = train.with_categories(quick(2), ["disc", "box", "star", "ring"], [1, 2, 3, 4])
    weights = idol.IDOL(known)
    path = str(checkpoint.save(weights, tmp_path / "x.safetensors"))
    # The ids are those of another file: labels are what the heads were trained for.
    config = train.with_categories(known, names, [0, 1, 2, 3])
    reset = initial_model(config, Start(weights=path, reset_classes=True)).state_dict()
    alike = [
        torch.equal(reset[key], value)
        for key, value in weights.state_dict().items()
        if key.startswith(("class_embed.", "dense_head."))
    ]
    if names[0] == "DISC":
        assert all(alike)
        assert initial_model(config, Start(weights=path)).config == config
    else:
        assert not all(alike)
        with pytest.raises(ValueError, match="label 0 is 'disc' there and 'bolt' here; 4 of 4"):
            initial_model(config, Start(weights=path))
    assert not caplog.records


def test_weights_that_name_no_categories_are_taken_with_a_warning_or_reset(tmp_path, caplog):
    model = idol.IDOL(quick(2))
    path = str(checkpoint.save(model, tmp_path / "x.safetensors"))
    config = train.with_categories(quick(2), ["bolt", "nut", "gear", "pin"], [1, 2, 3, 4])
    kept = initial_model(config, Start(weights=path))
    assert torch.equal(kept.class_embed[0].weight, model.class_embed[0].weight)
    assert "does not say which categories" in caplog.text
    reset = initial_model(config, Start(weights=path, reset_classes=True))
    assert not torch.equal(reset.class_embed[0].weight, model.class_embed[0].weight)


def test_a_released_file_of_other_classes_is_a_start_for_fine_tuning(prepared, tmp_path):
    # What the README's cluster run does: weights of 80 COCO classes, for another dataset.
    model = idol.IDOL(override(quick(2), ["model.num_classes=80", "model.dense_auxiliary=false"]))
    released = {}
    for key, value in model.state_dict().items():
        for theirs, ours in PREFIXES:
            if key.startswith(ours):
                released[theirs + key.removeprefix(ours)] = value
                break
    assert from_released(released).keys() == model.state_dict().keys()
    path = tmp_path / "coco.pth"
    torch.save({"model": released}, path)
    with pytest.raises(ValueError, match="--reset-classes"):
        train.run(prepared, tmp_path / "a", quick(2), Start(weights=str(path)), ALONE)
    config = quick(2)
    start = initial_model(
        train.with_categories(config, ["a", "b", "c", "d"], [1, 2, 3, 4]),
        Start(weights=str(path), reset_classes=True),
    ).state_dict()
    assert torch.equal(start["transformer.level_embed"], model.transformer.level_embed)
    assert start["class_embed.0.weight"].shape[0] == 4


def test_an_identity_head_is_made_for_the_instances_of_the_pairs(prepared, tmp_path):
    count = len(loader.number_instances(prepared)[0])
    assert count > 3
    with_head = quick(2, "losses.identity=1", "losses.reid=0", "losses.reid_aux=0")
    train.run(prepared, tmp_path / "a", with_head, workers=ALONE)
    curve = run_page.curves(tmp_path / "a")["loss_identity"]
    # About log M from a head that knows nothing yet.
    assert 0.5 * np.log(count) < curve[-1][1] < 2 * np.log(count)
    path = tmp_path / "a" / train.WEIGHTS
    model = idol.load(path)
    assert model.config.model.num_identities == count == len(model.identity_head.weight)
    # A start for another run: with its head, without one, or for other instances.
    same = initial_model(model.config, Start(weights=str(path)))
    assert torch.equal(same.identity_head.weight, model.identity_head.weight)
    plain = train.with_identities(override(model.config, ["losses.identity=0"]), prepared)
    assert initial_model(plain, Start(weights=str(path))).identity_head is None
    other = override(model.config, ["model.num_identities=5"])
    other = initial_model(other, Start(weights=str(path)))
    assert len(other.identity_head.weight) == 5
    assert torch.equal(other.transformer.level_embed, model.transformer.level_embed)
    headless = str(checkpoint.save(idol.IDOL(plain), tmp_path / "plain.safetensors"))
    assert initial_model(model.config, Start(weights=headless)).identity_head is not None


def test_what_is_done_needs_its_weights_no_more_and_what_is_begun_starts_from_them(
    prepared, tmp_path, monkeypatch
):
    network = train.with_categories(quick(2), ["star", "fish", "flower", "cross"], [1, 2, 3, 4])
    torch.manual_seed(5)
    path = checkpoint.save(idol.IDOL(network), tmp_path / "start.safetensors")
    expected = idol.load(path).state_dict()
    seen = []

    def dies(self, batch):
        seen.append({k: v.clone() for k, v in self.model.state_dict().items()})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", dies)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - Ray wraps it as it likes
            train.run(prepared, tmp_path / "a", quick(2), Start(weights=str(path)), ALONE)
    assert all(torch.equal(seen[0][k], v) for k, v in expected.items())
    made = train.run(prepared, tmp_path / "a", quick(2), Start(weights=str(path)), ALONE)
    path.unlink()
    assert train.run(prepared, tmp_path / "a", quick(2), Start(weights=str(path)), ALONE) == made
    assert not list((tmp_path / "a").glob("_start*"))
    with pytest.raises(FileNotFoundError):
        train.run(prepared, tmp_path / "b", quick(2), Start(weights=str(path)), ALONE)
    assert not (tmp_path / "b").exists()


def test_a_finished_run_is_a_start_by_its_directory_and_an_unfinished_one_is_refused(tmp_path):
    config = quick(2)
    torch.manual_seed(3)
    model = idol.IDOL(config)
    first = claims.prepare_output(tmp_path / "first", "train", {}, "h")
    checkpoint.save(model, tmp_path / "first" / train.WEIGHTS)
    first.finish()
    start = initial_model(config, Start(weights=str(tmp_path / "first"))).state_dict()
    assert all(torch.equal(start[name], value) for name, value in model.state_dict().items())
    claims.prepare_output(tmp_path / "begun", "train", {}, "h")
    with pytest.raises(ManifestError, match="holds an unfinished 'train' output"):
        initial_model(config, Start(weights=str(tmp_path / "begun")))
    claims.prepare_output(tmp_path / "pairs", "prepare", {}, "h").finish()
    with pytest.raises(ManifestError, match="holds 'prepare' output, not 'train'"):
        initial_model(config, Start(weights=str(tmp_path / "pairs")))
    with pytest.raises(FetchError, match="is a folder, not a file"):
        initial_model(config, Start(weights=str(tmp_path)))


def test_backbone_weights_reach_the_backbone_alone_and_exclude_weights(tmp_path, monkeypatch):
    config = quick(2)
    torch.manual_seed(config.train.seed)
    random = idol.IDOL(config).state_dict()

    def load_imagenet(backbone, source):
        assert source == "hf://owner/repo/imagenet.safetensors"
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.fill_(0.5)
        return []

    stand_in = types.SimpleNamespace(load_imagenet=load_imagenet)
    monkeypatch.setitem(sys.modules, "idol.weights.imagenet", stand_in)
    source = "hf://owner/repo/imagenet.safetensors"
    for name, value in initial_model(config, Start(backbone_weights=source)).state_dict().items():
        expected = torch.full_like(value, 0.5) if name.startswith("backbone.") else random[name]
        assert torch.equal(value, expected), name
    with pytest.raises(ValueError, match="leave out backbone_weights"):
        initial_model(config, Start(weights="shipped", backbone_weights=source))


def test_weights_of_another_network_are_refused_before_anything_starts(prepared, tmp_path):
    wide = override(quick(2), ["model.width=32", "model.num_heads=4"])
    weights = str(checkpoint.save(idol.IDOL(wide), tmp_path / "wide.safetensors"))
    with pytest.raises(CheckpointError, match="instead of"):
        train.run(prepared, tmp_path / "a", quick(2), Start(weights=weights), ALONE)
    assert not (tmp_path / "a").exists()


def test_more_workers_than_pairs_in_a_batch_are_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"batch of 2 pairs is for 1\.\.2 workers, .* of 3\. Use "):
        train.run(prepared, tmp_path / "a", quick(2), workers=Workers(count=3))
    assert not (tmp_path / "a").exists()


@pytest.fixture
def longer(prepared, tmp_path) -> Path:
    """The same videos, as clips of four frames."""
    folder = tmp_path / "longer"
    shutil.copytree(prepared, folder)
    made = manifest.read(folder)
    manifest.commit(replace(made, config={**made.config, "clip": 4}), folder)
    return folder


def test_pairs_and_clips_are_for_the_signals_that_learn_from_them(prepared, longer, tmp_path):
    with pytest.raises(
        ValueError, match=r"from pairs of frames: pairs\.clip=2, but .*clip=4\. Prepare"
    ):
        train.run(longer, tmp_path / "a", quick(2), workers=ALONE)
    memory = quick(2, "losses.contrast=memory")
    with pytest.raises(
        ValueError, match=r"from clips: pairs\.clip of 3 or more, but .*clip=2\. Pr"
    ):
        train.run(prepared, tmp_path / "a", memory, workers=ALONE)
    assert not (tmp_path / "a").exists()


def test_consistent_training_goes_on_from_weights_of_pairs(longer, tmp_path):
    shipped_as = f"model.num_queries={presets.tiny().model.num_queries}"
    memory = quick(2, shipped_as, "losses.contrast=memory", "train.ema_decay=0")
    train.run(longer, tmp_path / "a", memory, Start(weights="shipped", reset_classes=True), ALONE)
    config, made = checkpoint.read(tmp_path / "a" / train.WEIGHTS)
    shipped = checkpoint.read(checkpoint.shipped())[1]
    assert config is not None
    assert (config.pairs.clip, config.losses.contrast) == (4, "memory")
    gaps = {
        n: (v - shipped[n]).abs().max() for n, v in made.items() if n.startswith("embedding_head")
    }
    assert gaps
    assert all(0 < gap < 0.01 for gap in gaps.values()), gaps


def test_unprepared_pairs_and_a_foreign_output_are_refused(prepared, tmp_path):
    with pytest.raises(ManifestError, match=r"jobs\.prepare"):
        train.run(
            tmp_path / "nothing",
            tmp_path / "a",
            quick(2),
            workers=ALONE,
            watching=Watching(log_to=tmp_path),
        )
    assert not (tmp_path / "mlflow.db").exists()  # no empty run is left
    train.run(prepared, tmp_path / "a", quick(2), workers=ALONE)
    with pytest.raises(ManifestError):
        train.run(prepared, tmp_path / "a", quick(3), workers=ALONE)
    assert json.loads((tmp_path / "a/_manifest.json").read_text())["rows"] == 2


def second_output(prepared, tmp_path, **changes) -> Path:
    """A copy of the prepared directory that is another output, some of its manifest changed."""
    copy = tmp_path / "second"
    shutil.copytree(prepared, copy)
    made = manifest.read(copy)
    manifest.commit(replace(made, extra={**made.extra, "videos": 99, **changes}), copy)
    return copy


def test_several_outputs_are_trained_on_together_and_recorded(prepared, tmp_path, monkeypatch):
    sets = pair_sets.given([str(prepared), str(second_output(prepared, tmp_path))], [1, 1])
    config = quick(4, "losses.identity=1", "losses.reid=0", "losses.reid_aux=0")
    seen = []
    whole = Trainer.step

    def step(self, batch):
        seen.append(torch.cat([t.identities for t in batch.key_targets]).tolist())
        return whole(self, batch)

    monkeypatch.setattr(Trainer, "step", step)
    made = train.run(sets, tmp_path / "run", config, workers=ALONE)
    model = idol.load(tmp_path / "run" / train.WEIGHTS)
    count = len(loader.number_instances(prepared)[0])
    assert model.config.model.num_identities == 2 * count
    # One pair of each output in every batch of two.
    assert len(seen) == 4
    assert all(min(ids) < count <= max(ids) for ids in seen)
    assert [one["weight"] for one in made.config["pair_sets"]] == [1, 1]
    assert model.config.pairs == presets.by_name("tiny").pairs
    assert train.run(sets, tmp_path / "run", config, workers=ALONE) == made
    other = pair_sets.given([str(place) for place in sets.directories], [2, 1])
    with pytest.raises(ManifestError, match="pair_sets"):
        train.run(other, tmp_path / "run", config, workers=ALONE)


def test_outputs_of_other_categories_are_refused_before_anything_is_made(prepared, tmp_path):
    second = second_output(prepared, tmp_path, categories=["star", "fish", "flower", "moon"])
    sets = pair_sets.given([str(prepared), str(second)])
    with pytest.raises(ValueError, match="label 3 is 'moon' there and 'cross' here"):
        train.run(sets, tmp_path / "run", quick(2), workers=ALONE)
    assert not (tmp_path / "run").exists()


def test_settings_tell_two_sources_apart_without_what_may_be_a_secret():
    first, second = (
        Start(weights=f"https://me:word@host/x.pth?token=secret{i}").recorded()["weights"]
        for i in range(2)
    )
    assert first != second
    assert first.startswith("https://host/x.pth (")
    assert not any(secret in first for secret in ("me", "word", "token", "secret"))
    plain = Start(weights="a?b/x.pth", backbone_weights="hf://a/b@v1/c.pth", reset_classes=True)
    assert plain.recorded() == asdict(plain)


def test_a_training_that_ends_early_is_not_finished(prepared, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train.advance(prepared, out, quick(4), 2, workers=ALONE)
    monkeypatch.setattr(loop, "work", lambda settings, seat: None)
    with pytest.raises(RuntimeError, match=r"training ended, but .*step-00000004 is not there"):
        train.run(prepared, out, quick(4), workers=ALONE, resume=True)
    assert not (out / "_manifest.json").exists()
