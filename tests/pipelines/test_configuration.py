"""What a caller may change of a checkpoint's configuration."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from idol.config import TrackerConfig, to_dict
from pipelines import configuration


def test_trackers_have_names_and_files(tmp_path: Path) -> None:
    assert configuration.tracker_config("released") == TrackerConfig.released("ytvis")
    assert configuration.tracker_config("ovis") == TrackerConfig.released("ovis")
    assert configuration.tracker_config("paper") == TrackerConfig.paper()
    wanted = replace(TrackerConfig.robust(), tau=0.25)
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"tracker": to_dict(wanted), "objective": "AP"}))
    assert configuration.tracker_config(path) == wanted
    path.write_text('{"tracker": {"tua": 1}}')
    with pytest.raises(ValueError, match="Did you mean 'tau'"):
        configuration.tracker_config(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="is no tracker file"):
        configuration.tracker_config(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        configuration.tracker_config(path)
    with pytest.raises(ValueError, match="no tracker 'relaesed'"):
        configuration.tracker_config("relaesed")
