"""What a caller changes of a checkpoint's configuration: a tracker by name or file, fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from idol.config import Config, TrackerConfig, from_dict, override
from idol.files import load_json
from idol.tracker import plugin
from pipelines.errors import PipelineError

_PLUGIN = re.compile(r"[\w.]+:\w+")


def changed(config: Config, overrides: Iterable[str], tracker: str | Path | None) -> Config:
    """The configuration of a trained network with what the caller changes.

    overrides: "section.field=value"
    tracker:   see tracker_config; None: the checkpoint's own
    Raises:
        ValueError: an override would change the network, or is a bad one.
        PipelineError: a threshold is below the score floor.
    """
    wanted = config if tracker is None else replace(config, tracker=tracker_config(tracker))
    wanted = override(wanted, overrides)
    if wanted.model != config.model:
        raise ValueError(
            "--set model.... cannot change a trained network; leave the section model as the "
            "checkpoint has it, or train another one"
        )
    if wanted.tracker.score_threshold < wanted.detect.score_floor:
        raise PipelineError(
            f"tracker.score_threshold ({wanted.tracker.score_threshold:g}) asks for detections "
            f"below detect.score_floor ({wanted.detect.score_floor:g}), which are not stored. Add "
            f"--set detect.score_floor={wanted.tracker.score_threshold:g}"
        )
    return wanted


def tracker_config(name: str | Path) -> TrackerConfig:
    """A tracker by name (see below), by class, or from a JSON file {"tracker": {field: value}}.

    name: for another tracker than ours package.module:Class, see idol.tracker.plugin

    Raises: ValueError: an unknown name, a class that cannot be imported, a file that is no such
        JSON, or an unknown field.
    """
    named = {
        "released": TrackerConfig.released,
        "ovis": lambda: TrackerConfig.released("ovis"),
        "paper": TrackerConfig.paper,
        "multi_cue": TrackerConfig.multi_cue,
        "robust": TrackerConfig.robust,
    }
    if str(name) in named:
        return named[str(name)]()
    path = Path(name)
    if not path.is_file() and _PLUGIN.fullmatch(str(name)):
        defaults = getattr(plugin.load(str(name)), "defaults", {})
        return from_dict(TrackerConfig, {**defaults, "plugin": str(name)})
    if not path.is_file():
        raise ValueError(
            f"there is no tracker {str(name)!r}: give one of {', '.join(named)}, a class as "
            "package.module:Class, or a JSON file such as the best.json of jobs.sweep"
        )
    content = load_json(path, "tracker")
    if not isinstance(content, Mapping) or not isinstance(content.get("tracker"), Mapping):
        raise ValueError(f'{path} is no tracker file: it must hold {{"tracker": {{field: value}}}}')
    return from_dict(TrackerConfig, content["tracker"])
