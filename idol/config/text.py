"""Configurations as plain JSON types and back, and overrides written as text."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """The inverse of to_dict; path: what messages put before a field's name.

    Raises: ValueError: an unknown field (named with the nearest known one) or a wrong type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{path or cls.__name__} must be a mapping of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    built: dict[str, Any] = {}
    for name, value in values.items():
        _known(cls, name, f"{path}{name}=...")
        built[name] = _convert(hints[name], value, f"{path}{name}")
    return cls(**built)


def override(config: T, assignments: Iterable[str]) -> T:
    """Replace fields by "section.field=value" strings; values are JSON, or bare words.

    Example: override(config, ["tracker.match_threshold=0.6", "train.steps=1000"]).
    Raises: ValueError: an unknown field (named with the nearest known one) or a bad value.
    """
    plain = to_dict(config)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(
                f"an override is section.field=value, got {assignment!r}. "
                "Example: tracker.match_threshold=0.6"
            )
        node: dict[str, Any] = plain
        cls: Any = type(config)
        *sections, last = key.strip().split(".")
        for part in sections:
            _known(cls, part, assignment)
            cls = _unwrap(typing.get_type_hints(cls)[part])
            if not dataclasses.is_dataclass(cls):
                raise ValueError(f"{part!r} in {assignment!r} is a value, not a section")
            node = node[part]
        _known(cls, last, assignment)
        try:
            node[last] = json.loads(text)
        except (ValueError, RecursionError):  # also numbers of thousands of digits
            word = text.strip()
            node[last] = {"True": True, "False": False, "None": None}.get(word, word)
    return from_dict(type(config), plain)


def _known(cls: Any, name: str, context: str) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(names)}."
        raise ValueError(f"{cls.__name__} has no field {name!r} ({context}). {hint}")


def _unwrap(hint: Any) -> Any:
    """X of Optional[X]; the hint itself otherwise."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _convert(_unwrap(hint), value, path)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{path} must be one of {typing.get_args(hint)}, got {value!r}")
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{path}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path} must be a list, got {value!r}")
        kinds = typing.get_args(hint)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{path} must have {len(kinds)} entries, got {value!r}")
        return tuple(_convert(k, v, path) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # neither infinite nor NaN
            return float(value)
        raise ValueError(f"{path} must be a finite number, got {str(value)[:40]}")
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{path} must be {hint.__name__}, got {value!r}")
    return value
