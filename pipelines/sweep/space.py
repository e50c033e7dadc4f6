"""Which values a sweep may try: fields of the configuration, with lists or ranges of values."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from idol.config import Config, TrackerConfig, override, to_dict, without_effect

TRACKER: Final = ("tracker",)
"""Sections that can be swept on stored detections."""
TRAINING: Final = ("train", "losses", "assignment", "transforms", "model")
"""Sections whose values need a training each."""
_EXAMPLES: Final = {
    "grid": "--grid tracker.memory_length=1,3,5",
    "choice": "--choice tracker.same_class=false,true",
    "uniform": "--uniform tracker.match_threshold=0.3,0.8",
    "log_uniform": "--log-uniform train.learning_rate=1e-4,1e-2",
}


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


def parse(asked: Mapping[str, Iterable[str]], base: Config, sections: Sequence[str]) -> Space:
    """{"grid": ["tracker.tau=0,0.5,1"], "uniform": ["tracker.momentum=0.3,0.8"]} -> checked values.

    A list of grid or choice has any values; uniform and log_uniform have LOW,HIGH, of whole numbers
    where the field is one. Every value must fit into base.

    Raises: ValueError: another section, an unknown field, a bad or repeated value.
    """
    space: Space = {}
    for kind, assignments in asked.items():
        for assignment in assignments:
            key, _, text = (part.strip() for part in assignment.partition("="))
            if not text:
                raise ValueError(
                    f"--{kind.replace('_', '-')} is SECTION.FIELD=VALUES, got {assignment!r}. "
                    f"Example: {_EXAMPLES[kind]}"
                )
            if key.partition(".")[0] not in sections or "." not in key:
                raise ValueError(_elsewhere(key, sections))
            if key in space:
                raise ValueError(f"{assignment!r} repeats a field")
            values = [value_of(override(base, [f"{key}={word}"]), key) for word in _words(text)]
            if len({json.dumps(value) for value in values}) < len(values):
                raise ValueError(f"{assignment} repeats a value")
            space[key] = Choices(tuple(values)) if "form" not in kind else _range(kind, key, values)
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
            "it one with --grid, or choose --search random or bayes."
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


def association(config: TrackerConfig) -> Space:
    """The numbers that matter most for a tracker of this kind, with their usual ranges."""
    fields = ["match_threshold", "new_threshold", "score_threshold", "memory_lifetime"]
    fields += ["mask_nms", "class_score_threshold"]
    if config.weighting == "paper":
        fields.append("tau")
    if config.weighting in {"paper", "released", "similarity_guided"} and not config.plugin:
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
    ranges = {
        # With a position term similarities exceed those of a cosine alone.
        "match_threshold": Range(0.05, 1.0 if config.position_weight > 0 else 0.9),
        "new_threshold": Range(0.1, 0.9),
        "score_threshold": Range(0.1, 0.5),
        "memory_lifetime": Range(2, 60, log=True, integer=True),
        "mask_nms": Range(0.2, 0.95),
        "class_score_threshold": Range(0.005, 0.2, log=True),
        "tau": Range(0.0, 2.0),
        "memory_length": Range(1, 10, integer=True),
        "momentum": Range(0.2, 1.0),
        "position_weight": Range(0.0, 2.0),
        "size_weight": Range(0.0, 1.5),
        "new_overlap": Range(0.02, 1.0),
        "cue_score": Range(0.0, 3.0),
        "cue_overlap": Range(0.0, 5.0),
        "cue_class": Range(0.0, 15.0),
    }
    return {f"tracker.{field}": ranges[field] for field in fields}


def _range(kind: str, key: str, values: Sequence[Any]) -> Range:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"a range is LOW,HIGH of numbers with LOW < HIGH, got {key}={[*values]}")
    low, high = numbers
    if kind == "log_uniform" and low <= 0:
        raise ValueError(f"a range on the logarithm's scale must lie above 0, got {key}={values}")
    return Range(low, high, log=kind == "log_uniform", integer=isinstance(low, int))


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
