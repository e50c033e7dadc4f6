"""Docstrings of this project as Markdown: `name: (shape) meaning` becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ITEM = re.compile(r"^(\w+(?:, \w+)*):(?: +(.*))?$")


class Docstrings(griffe.Extension):
    """Rewrite every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Lines `name: meaning` and what is indented below them as items; the rest stays.

    text: a docstring without its common indentation
    """
    out: list[str] = []
    in_list = False
    for line in text.splitlines():
        item = _ITEM.match(line)
        if item and (item[2] or item[1] in ("Raises", "Returns")):
            name, meaning = item[1], item[2] or ""
            if not in_list:
                out.append("")
            out.append(f"- `{name}`: {meaning}" if meaning else f"- {name}:")
            in_list = True
        elif in_list and line.startswith(" "):
            inner = _ITEM.match(line.strip())
            deep = inner and out and not line.startswith("     ")
            out.append(
                f"    - `{inner[1]}`: {inner[2] or ''}" if deep and inner else "    " + line.strip()
            )
        else:
            if in_list and line.strip():
                out.append("")
            in_list = in_list and not line.strip()
            out.append(line)
    return "\n".join(out)
