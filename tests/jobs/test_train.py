"""The command line of training: what it offers, and what it refuses at once."""

import pytest

from idol import presets
from jobs import train


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
