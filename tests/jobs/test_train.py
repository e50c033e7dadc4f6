"""The command line of training: what it offers, and what it refuses at once."""

import pytest

from idol import presets
from idol.config import PairConfig, override, to_dict
from jobs import sweep, train
from pipelines.stages.train import with_pairs
from pipelines.storage import claims


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
        words += ["--annotations", "a.json", "--space", "train.learning_rate=1,2"]
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
