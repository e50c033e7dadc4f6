"""Which option has an effect only beside which other: declared with its field, for sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Above:
    """Any number above this."""

    bound: float

    def __contains__(self, value: float) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"above {self.bound:g}"


def beside(default: T, **others: Sequence[Any] | Above) -> T:
    """A field that has an effect only while each of these other fields has one of these values.

    others: name -> values; a field of another section with its section, as "model.dense_auxiliary"
    """
    made: T = field(default=default, metadata={"beside": others})
    return made


def without_effect(config: Any, key: str, tried: Mapping[str, Sequence[Any]]) -> str:
    """Why no value of "section.field" changes anything, in words; "" where one may.

    tried: the values of fields that take others than those of config
    """
    section, _, name = key.rpartition(".")
    (declared,) = (f for f in fields(attrgetter(section)(config)) if f.name == name)
    for other, needed in declared.metadata.get("beside", {}).items():
        path = other if "." in other else f"{section}.{other}"
        values = tried.get(path) or [attrgetter(path)(config)]
        if not any(value in needed for value in values):
            words = str(needed) if isinstance(needed, Above) else " or ".join(map(str, needed))
            got = " and ".join(map(str, values))
            return f"{key} has no effect: it needs {path} {words}, which is {got} here"
    return ""
