"""Which values a sweep may try: fields of the configuration, with lists or ranges of values."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from idol.config import Config, TrackerConfig, override, to_dict, without_effect

TRACKER: Final = ("tracker",)
"""Sections that can be swept on stored detections."""
TRAINING: Final = ("train", "losses", "assignment", "transforms", "model")
"""Sections whose values need a training each."""
_RANGE = re.compile(r"^(-?[0-9.eE+-]*[0-9.])\.\.(-?[0-9.eE+-]+)(:log)?$")


@dataclass(frozen=True, slots=True)
class Choices:
    """A list of values."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """One of them, all with the same probability."""
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from low to high, both included; log: draws are uniform in the logarithm."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def draw(self, rng: np.random.Generator) -> float | int:
        """One of them, all with the same probability (density)."""
        # Half a step beyond the ends, so that a whole number at an end is not half as likely.
        margin = 0.5 if self.integer else 0.0
        low, high = self.low - margin, self.high + margin
        if self.log:
            return self.rounded(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self.rounded(rng.uniform(low, high))

    def rounded(self, value: float) -> float | int:
        """The number within the range, whole or of five digits: a metric tells no more apart."""
        if self.integer:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.5g}"), self.low), self.high)


Dimension = Choices | Range
Space = dict[str, Dimension]
"""Field ("tracker.tau") -> its values."""


def parse(assignments: Iterable[str], base: Config, sections: Sequence[str]) -> Space:
    """["tracker.tau=0,0.5,1", "tracker.match_threshold=0.3..0.8"] -> field -> checked values.

    A range is LOW..HIGH or LOW..HIGH:log, of whole numbers where the field is one. A field without
    "=" gets its usual values. Every value must fit into base.

    Raises: ValueError: another section, an unknown field, a bad or repeated value.
    """
    space: Space = {}
    for assignment in assignments:
        key, separator, text = (part.strip() for part in assignment.partition("="))
        section = key.partition(".")[0]
        if separator and not text:
            raise ValueError(
                f"a space is section.field=values, got {assignment!r}. Example: "
                f"{sections[0]}.field=0.3,0.5,0.7 or {sections[0]}.field=0.3..0.7"
            )
        if section not in sections or "." not in key:
            raise ValueError(_elsewhere(key, sections))
        if key in space:
            raise ValueError(f"{assignment!r} repeats a field")
        space[key] = _dimension(key, text, base) if separator else usual(key, base)
    return space


def to_dict_of(space: Space) -> dict[str, Any]:
    """A space as plain JSON types."""
    return {key: asdict(dimension) for key, dimension in space.items()}


def from_dict(plain: Mapping[str, Mapping[str, Any]]) -> Space:
    """The inverse of to_dict_of, also after a way through JSON."""
    return {
        key: Choices(tuple(values["values"])) if "values" in values else Range(**values)
        for key, values in plain.items()
    }


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of a space of lists, in order.

    Raises: ValueError: a field has a range.
    """
    ranges = [key for key, dimension in space.items() if isinstance(dimension, Range)]
    if ranges:
        raise ValueError(
            f"a grid needs a list of values for every field, but {ranges[0]} has a range. Give "
            "values (a,b,c), or choose --search random or bayes."
        )
    lists = [d.values for d in space.values() if isinstance(d, Choices)]
    yield from (dict(zip(space, values, strict=True)) for values in itertools.product(*lists))


def draw(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The number-th random combination: a function of seed and number."""
    rng = np.random.default_rng([seed, number])
    return {key: dimension.draw(rng) for key, dimension in space.items()}


def applied(base: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with {"section.field": value}; ValueError: they do not go together."""
    return override(base, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def idle(space: Space, base: Config) -> list[str]:
    """Of each field of which no value changes anything, in words, why."""
    tried = {
        key: dimension.values if isinstance(dimension, Choices) else (dimension.low, dimension.high)
        for key, dimension in space.items()
    }
    return [reason for key in space if (reason := without_effect(base, key, tried))]


def without_section(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as reports show them: fields of the tracker by their name alone."""
    return {key.removeprefix("tracker."): value for key, value in values.items()}


def value_of(config: Config, key: str) -> Any:
    """The value of "section.field", as plain JSON types."""
    node: Any = to_dict(config)
    for part in key.split("."):
        node = node[part]
    return node


def usual(key: str, base: Config) -> Dimension:
    """Values worth trying: both of a switch, all of a choice, or a range of a tracker's number.

    Raises: ValueError: an unknown field, or one without usual values.
    """
    section, _, field = key.partition(".")
    if field not in to_dict(base)[section]:
        override(base, [f"{key}=0"])  # its message says which fields there are
    if isinstance(value_of(base, key), bool):
        return Choices((False, True))
    found = _usual_ranges(base.tracker).get(field) if section == "tracker" else None
    if found is None:
        raise ValueError(
            f"{key} has no usual values: give some, for example {key}=LOW..HIGH or {key}=A,B,C"
        )
    return found


def association(config: TrackerConfig) -> Space:
    """The numbers that matter most for a tracker of this kind, with their usual ranges."""
    fields = ["match_threshold", "new_threshold", "score_threshold", "memory_lifetime"]
    fields += ["mask_nms", "class_score_threshold"]
    if config.weighting == "paper":
        fields.append("tau")
    if config.weighting in {"paper", "released", "similarity_guided"}:
        fields.append("memory_length")
    if config.weighting == "momentum":
        fields.append("momentum")
    if config.similarity == "multi_cue":
        fields.remove("match_threshold")
        fields += ["cue_score", "cue_overlap", "cue_class"]
    # A term that is off stays off: a sweep of the numbers does not choose another method.
    fields += [name for name in ("position_weight", "size_weight") if getattr(config, name) > 0]
    if config.new_overlap < 1:
        fields.append("new_overlap")
    ranges = _usual_ranges(config)
    return {f"tracker.{field}": ranges[field] for field in fields}


def _usual_ranges(config: TrackerConfig) -> dict[str, Dimension]:
    """Ranges around the values of released code, paper and our tracker; too far at both ends."""
    # With a position term similarities exceed those of a cosine alone.
    top = 1.0 if config.similarity == "cosine" and config.position_weight > 0 else 0.9
    return {
        "match_threshold": Range(0.05, top),
        "new_threshold": Range(0.1, 0.9),
        "first_threshold": Range(0.1, 0.9),
        "score_threshold": Range(0.1, 0.5),
        "memory_lifetime": Range(2, 60, log=True, integer=True),
        "mask_nms": Range(0.2, 0.95),
        "class_score_threshold": Range(0.005, 0.2, log=True),
        "tau": Range(0.0, 2.0),
        "memory_length": Range(1, 10, integer=True),
        "momentum": Range(0.2, 1.0),
        "position_weight": Range(0.0, 2.0),
        "size_weight": Range(0.0, 1.5),
        "softmax_weight": Range(0.0, 1.0),
        "class_weight": Range(0.0, 1.0),
        "new_overlap": Range(0.02, 1.0),
        "min_cosine": Range(-1.0, 0.8),
        "cue_score": Range(0.0, 3.0),
        "cue_overlap": Range(0.0, 5.0),
        "cue_class": Range(0.0, 15.0),
        "prune_short": Range(0, 5, integer=True),
        "weighting": Choices(("paper", "released", "momentum", "last", "similarity_guided")),
        "similarity": Choices(("paper", "released", "cosine", "multi_cue")),
        "assignment": Choices(("greedy", "argmax", "hungarian")),
    }


def _dimension(key: str, text: str, base: Config) -> Dimension:
    found = _RANGE.match(text.replace(" ", ""))
    if found is None:
        values = [value_of(override(base, [f"{key}={word}"]), key) for word in _words(text)]
        if len({json.dumps(v) for v in values}) < len(values):
            raise ValueError(f"{key}={text} repeats a value")
        return Choices(tuple(values))
    low, high = (value_of(override(base, [f"{key}={found[n]}"]), key) for n in (1, 2))
    integer = isinstance(low, int) and not isinstance(low, bool)
    if isinstance(low, bool) or not isinstance(low, int | float) or not low < high:
        raise ValueError(f"a range is LOW..HIGH of numbers with LOW < HIGH, got {key}={text}")
    if found[3] and low <= 0:
        raise ValueError(f"a range on the logarithm's scale must lie above 0, got {key}={text}")
    return Range(low, high, log=bool(found[3]), integer=integer)


def _words(text: str) -> list[str]:
    """The values of a list, cut at the commas outside brackets."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words]


def _elsewhere(key: str, sections: Sequence[str]) -> str:
    if sections == TRACKER:
        return (
            f"{key!r} cannot be swept on stored detections; the fields of tracker can, for "
            "example tracker.tau. Those of train, losses, assignment, transforms and model can "
            "with --pairs, which trains for each value; detect.* needs jobs.evaluate for each."
        )
    return f"{key!r} cannot be swept by training; fields of {', '.join(sections)} can"
