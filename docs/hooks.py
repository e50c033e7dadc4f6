"""What pages of the site have that is made from the code, so that it cannot differ from it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import typing
from collections.abc import Iterator
from typing import Any

from idol import presets
from idol.config import Config

MARK = re.compile(r"<!-- made: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables in the place of `<!-- made: NAME -->`."""
    makers = {"settings": settings, "presets": preset_table}
    return MARK.sub(lambda found: makers[found[1]](), markdown)


def settings() -> str:
    """Every field of the configuration, by section: name, kind, default, meaning."""
    lines: list[str] = []
    for name, kind, section in sections("", Config()):
        lines += [f"\n## {name}\n", _text(inspect.getdoc(kind)), ""]
        lines += ["| field | kind | default | meaning |", "|---|---|---|---|"]
        meanings = docstrings(kind)
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                continue
            cells = (
                f"`{field.name}`",
                f"`{_kind(hints[field.name])}`",
                f"`{value}`" if value != "" else "–",
                meanings.get(field.name, ""),
            )
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def sections(prefix: str, config: Any) -> Iterator[tuple[str, type, Any]]:
    """(name, class, default) of every section, as --set names it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield prefix + field.name, type(value), value
            yield from sections(f"{prefix}{field.name}.", value)


def docstrings(kind: type) -> dict[str, str]:
    """Field -> the docstring under it."""
    module = importlib.import_module(kind.__module__)
    tree = ast.parse(inspect.getsource(module))
    (body,) = (
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    found = {}
    for node, below in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(node.target, ast.Name)
            found[node.target.id] = _text(ast.literal_eval(below.value))
    return found


def preset_table() -> str:
    """Every preset with what tells it apart."""
    lines = [
        "| preset | backbone | classes | queries | steps | pairs a step | side in training "
        "| side in use | tracker |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in presets.PRESETS:
        config = presets.by_name(name)
        sides = config.transforms.train_short_sides
        cells = (
            f"`{name}`",
            config.model.backbone.name,
            config.model.num_classes,
            config.model.num_queries,
            config.train.steps,
            config.train.pairs_per_batch,
            f"{min(sides)}–{max(sides)}" if sides else "–",
            config.transforms.test_short_side,
            config.tracker.weighting,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _text(words: str | None) -> str:
    return " ".join((words or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
