"""The command line of training: what it offers, and what it refuses at once."""

import json
import re
from dataclasses import replace

import pytest

import idol
from idol import presets
from idol.config import BackboneConfig, PairConfig, override, to_dict
from idol.weights import checkpoint
from jobs import sweep, train
from pipelines.stages.train import with_categories, with_pairs
from pipelines.storage import claims, manifest


def test_help_names_every_preset(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # no name is cut at the end of a line
    with pytest.raises(SystemExit) as done:
        train.main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in presets.PRESETS)
    assert "--backbone-weights" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tinny"], "Did you mean 'tiny'"),
        (["--set", "losses.identty=1"], "Did you mean 'identity'"),
        (["--set", "assignment.cost=other"], "must be one of"),
        (["--set", "train.precision=fp16"], "must be one of"),
        (["--set", "validation.metric=AP60"], "must be one of"),
    ],
)
def test_a_wrong_name_or_number_exits_with_what_to_do(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        train.main(["--pairs", str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", [train, sweep])
def test_pairs_made_otherwise_than_asked_for_are_refused(job, tmp_path):
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    made = to_dict(PairConfig(max_gap=3))
    claims.prepare_output(pairs, "prepare", made, "").finish(extra={"categories": []})
    words = ["--pairs", str(pairs), "--out", str(out)]
    if job is sweep:
        words += ["--annotations", "a.json", "--grid", "train.learning_rate=1,2"]
    with pytest.raises(SystemExit, match=r"pairs\.max_gap=5 does not fit: .*pairs\.max_gap=3\. "):
        job.main([*words, "--set", "train.steps=1", "--set", "pairs.max_gap=5"])
    assert not out.exists()
    config = override(presets.by_name("tiny"), ["pairs.max_gap=3"])
    assert with_pairs(presets.by_name("tiny"), pairs, ["pairs.max_gap=3"]) == config


def test_weights_go_with_the_outputs_they_are_given_for(tmp_path):
    words = ["--out", str(tmp_path / "out"), "--preset", "tiny", "--pairs", "a", "b"]
    for weights in (["1"], ["1", "2", "3"], ["1", "0"], ["-1", "2"]):
        with pytest.raises(SystemExit, match="2 directories of pairs must have 2 weights"):
            train.main([*words, "--pairs-weights", *weights])
    with pytest.raises(SystemExit, match="a is given twice"):
        train.main([*words, "./a"])
    assert not (tmp_path / "out").exists()


CATEGORIES = {"categories": ["star", "fish", "flower", "cross"], "category_ids": [1, 2, 3, 4]}


def prepared(path, **changes):
    """The directory of a finished prepare: all that is looked at before training begins."""
    output = claims.prepare_output(path, "prepare", to_dict(PairConfig()), path.name)
    output.finish(extra=CATEGORIES | changes)
    return str(path)


def of_another_version(tmp_path):
    prepared(tmp_path / "pairs")
    path = tmp_path / "pairs" / manifest.MANIFEST
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "schema_version": values["schema_version"] + 1}))
    return ["--pairs", str(tmp_path / "pairs")]


def unfinished(tmp_path):
    claims.prepare_output(tmp_path / "pairs", "prepare", {}, "h")
    return ["--pairs", str(tmp_path / "pairs")]


def of_another_stage(tmp_path):
    claims.prepare_output(tmp_path / "pairs", "evaluate", {}, "h").finish()
    return ["--pairs", str(tmp_path / "pairs")]


def of_other_classes(tmp_path):
    other = {"categories": ["star", "fish", "flower", "moon"]}
    return ["--pairs", prepared(tmp_path / "a"), prepared(tmp_path / "b", **other)]


def without_classes(tmp_path):
    return ["--pairs", prepared(tmp_path / "pairs", categories=None)]


def with_longer_clips(tmp_path):
    output = claims.prepare_output(tmp_path / "pairs", "prepare", to_dict(PairConfig(clip=5)), "h")
    output.finish(extra=CATEGORIES)
    return ["--pairs", str(tmp_path / "pairs")]


def weights_of(config, tmp_path):
    path = checkpoint.save(idol.IDOL(config), tmp_path / "weights.safetensors")
    return ["--pairs", prepared(tmp_path / "pairs"), "--weights", str(path)]


def weights_of_a_wider_network(tmp_path):
    return weights_of(override(presets.tiny(), ["model.width=96"]), tmp_path)


def weights_of_another_backbone(tmp_path):
    base = presets.tiny()
    shallow = BackboneConfig(name="tiny", frozen_stages=0, tiny_channels=(8, 16, 24, 32, 40))
    return weights_of(replace(base, model=replace(base.model, backbone=shallow)), tmp_path)


def weights_of_other_classes(tmp_path):
    base = presets.tiny()
    return weights_of(with_categories(base, ["bolt", "nut", "gear", "pin"], [1, 2, 3, 4]), tmp_path)


def weights_of_a_training_that_is_not_over(tmp_path):
    claims.prepare_output(tmp_path / "run", "train", {}, "h")
    return ["--pairs", prepared(tmp_path / "pairs"), "--weights", str(tmp_path / "run")]


def more_workers_than_pairs(tmp_path):
    return ["--pairs", prepared(tmp_path / "pairs"), "--workers", "5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (of_another_version, r"pairs holds tables of schema version \d+, this code .*--overwrite"),
        (unfinished, "pairs holds an unfinished 'prepare' output .*Run the command that started"),
        (of_another_stage, "pairs holds 'evaluate' output, not 'prepare'.*jobs.prepare"),
        (of_other_classes, "in .*b and .*a: label 3 is 'moon' there and 'cross' here; 1 of 4"),
        (without_classes, r"_manifest\.json is damaged"),
        (with_longer_clips, r"pairs was made with pairs\.clip=5\. Prepare it again"),
        (weights_of_a_wider_network, "weights.safetensors.*instead of"),
        (weights_of_another_backbone, "weights.safetensors.*instead of"),
        (weights_of_other_classes, "label 0 is 'bolt' there and 'star' here.*--reset-classes"),
        (weights_of_a_training_that_is_not_over, "run holds an unfinished 'train' output"),
        (more_workers_than_pairs, r"a batch of 4 pairs is for 1\.\.4 workers, .*fewer workers"),
    ],
)
def test_bad_input_is_told_before_anything_is_made_or_started(
    given, message, tmp_path, monkeypatch
):
    def fit(*_):
        pytest.fail("training has begun")

    monkeypatch.setattr("pipelines.stages.train._fit", fit)
    with pytest.raises(SystemExit) as told:
        train.main([*given(tmp_path), "--out", str(tmp_path / "out")])
    assert re.search(message, str(told.value), re.DOTALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2..x"], "--workers is a number such as 4, a range such as 2..8"),
        (["--workers=-1"], "got '-1'"),
        (["--workers", "8..2"], "got '8..2'"),
        (["--label-selector", "spot"], "--label-selector is key=value, got 'spot'"),
        (["--cpus-per-worker", "0"], "needs 1 CPU or more, got 0"),
        (["--set", "validation.every=5"], "needs --validate LABELS"),
        (["--validate", "absent.json"], "absent.json: cannot be read"),
    ],
)
def test_words_about_workers_and_validation_are_checked_first(words, message, tmp_path):
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    made = to_dict(presets.by_name("tiny").pairs)
    named = {"categories": ["a"], "category_ids": [1]}
    claims.prepare_output(pairs, "prepare", made, "").finish(extra=named)
    with pytest.raises(SystemExit) as told:
        train.main(["--pairs", str(pairs), "--out", str(out), *words])
    assert message in str(told.value)
    assert not out.exists()
