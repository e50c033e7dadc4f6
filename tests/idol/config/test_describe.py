"""What is said of a field is so: what lies beyond its limits is refused, its default is its own."""

from __future__ import annotations

import json

import pytest

from idol import presets
from idol.config import Config, override
from idol.config.describe import described, sections

ALL = [
    (name, one)
    for name, part in sections(presets.by_name("tiny")).items()
    for one in described(name, part)
]
IDS = [one.name for _, one in ALL]


def test_every_section_and_field_is_there_once() -> None:
    assert len(set(IDS)) == len(IDS) > 80
    assert {"tracker.tau", "model.backbone.name", "transforms.stretch"} <= set(IDS)


@pytest.mark.parametrize("one", [one for _, one in ALL], ids=IDS)
def test_a_field_has_a_meaning_and_a_default_that_set_takes(one) -> None:
    assert len(one.meaning) > 5
    config = presets.by_name("tiny")
    assert override(config, [f"{one.name}={one.default}"]) == config


@pytest.mark.parametrize("one", [one for _, one in ALL if one.limits], ids=lambda one: one.name)
def test_what_lies_beyond_the_limits_is_refused(one) -> None:
    rule = one.limits.split(", ")[0]
    low, _, high = rule.partition(" to ")
    if rule.startswith("at most"):
        wrong = float(rule.removeprefix("at most ")) + 1
    elif not high:
        wrong = {"above 0": 0, "0 or more": -1}[rule]
    elif high.isidentifier():  # another field
        wrong = -1
    else:
        wrong = float(high) + 1
        assert float(low) < float(high)
    value = int(wrong) if "whole" in one.kind else float(wrong)
    listed = json.loads(one.default)
    given = [value] * len(listed or [0, 0]) if "list" in one.kind or " x " in one.kind else value
    with pytest.raises(ValueError, match=one.name.rpartition(".")[2]):
        override(Config(), [f"{one.name}={json.dumps(given)}"])


def test_text_has_limits_choices_and_what_else_is_needed() -> None:
    fields = {one.name: one.text() for _, one in ALL}
    assert fields["tracker.momentum"].startswith("tracker.momentum=0.3  (number, 0 to 1)\n")
    assert "(greedy|argmax|hungarian)" in fields["tracker.assignment"]
    assert "Only with tracker.weighting momentum." in fields["tracker.momentum"]
    assert "2 x whole number or null" in fields["transforms.stretch"]
    assert all(len(line) < 140 for text in fields.values() for line in text.splitlines())
