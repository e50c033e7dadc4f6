"""What every field of a configuration means: read from the classes themselves, so that it is so."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from idol.config.effects import Above


@dataclass(frozen=True, slots=True)
class Described:
    """One field.

    name:    as --set takes it, "tracker.tau"
    kind:    what it holds, in words; of a choice its values
    default: as --set takes it
    limits:  what is refused otherwise, "0 to 1"; "" where nothing else is
    beside:  other field -> values beside which alone it has an effect
    meaning: its docstring, in one paragraph
    """

    name: str
    kind: str
    default: str
    limits: str
    meaning: str
    beside: Mapping[str, str] = field(default_factory=dict)

    def text(self, width: int = 88) -> str:
        """A line with name, default and limits, then the meaning."""
        known = ", ".join(filter(None, (self.kind, self.limits)))
        lines = textwrap.wrap(self.meaning, width)
        needed = [f"Only with {other} {values}." for other, values in self.beside.items()]
        return "\n    ".join([f"{self.name}={self.default}  ({known})", *lines, *needed])


def sections(config: Any) -> dict[str, Any]:
    """The parts of a configuration that --set reaches, "model.backbone" among them, by name."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            found[one.name] = value
            found |= {f"{one.name}.{inner}": part for inner, part in sections(value).items()}
    return found


def described(section: str, part: Any) -> Iterator[Described]:
    """Every field of one part of a configuration, with the defaults of this one.

    section: its name, "tracker"
    """
    kind: Any = type(part)
    meanings, limits = _read(kind)
    hints = typing.get_type_hints(kind)
    for one in dataclasses.fields(part):
        value = getattr(part, one.name)
        if dataclasses.is_dataclass(value):
            continue
        default = json.dumps(value)
        yield Described(
            name=f"{section}.{one.name}",
            kind=_kind(hints[one.name]),
            # Bare words need no quotes there.
            default=default.strip('"') if isinstance(value, str) else default,
            limits=limits.get(one.name, ""),
            meaning=meanings.get(one.name, ""),
            beside=_beside(section, one.metadata.get("beside", {})),
        )


def _beside(section: str, needed: Mapping[str, Any]) -> dict[str, str]:
    return {
        other if "." in other else f"{section}.{other}": (
            str(values) if isinstance(values, Above) else " or ".join(map(str, values))
        )
        for other, values in needed.items()
    }


def _kind(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _kind(one) for one in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"list of {_kind(inner[0])}"
        return f"{len(inner)} x {_kind(inner[0])}"
    words = {bool: "true|false", int: "whole number", float: "number", str: "text"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


@functools.cache
def _read(cls: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Of a dataclass's source: field -> docstring, field -> what __post_init__ lets pass."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    meanings: dict[str, str] = {}
    limits: dict[str, str] = {}
    before: str | None = None
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            before = node.target.id
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and before:
            meanings[before] = " ".join(str(node.value.value).split())
        elif isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                    _note(call, limits, vars(sys.modules[cls.__module__]))
        before = None
    return meanings, limits


def _note(call: ast.Call, limits: dict[str, str], known: Mapping[str, Any]) -> None:
    """Add what one rule of idol.config.checks asks of the fields that it names."""
    assert isinstance(call.func, ast.Name)
    words = {"unit": "0 to 1", "positive": "above 0", "not_negative": "0 or more"}
    numbers = [ast.unparse(one).replace("self.", "") for one in call.args[1:3]]
    rule = words.get(call.func.id)
    if call.func.id == "within":
        rule = f"{numbers[0]} to {numbers[1]}"
    elif call.func.id == "at_most":
        rule = f"at most {numbers[0].replace('_', '')}"
    if rule is None or call.func.id not in known:
        return
    for argument in call.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            name = argument.value
            limits[name] = f"{limits[name]}, {rule}" if name in limits else rule
