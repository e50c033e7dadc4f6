"""Packages that import their public names on first use, so that scoring needs no PyTorch."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, homes: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The module functions `__getattr__` (PEP 562) and `__dir__` of a package.

    package: its dotted name
    homes:   public name -> dotted name of the module that defines it; None: as the package's file
             imports them under `if TYPE_CHECKING:`
    returns: functions that know these names and the modules of the package
    """
    homes = _declared(package) if homes is None else homes

    def get(name: str) -> Any:
        if name in homes:
            found = getattr(importlib.import_module(homes[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            found = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names


def _declared(package: str) -> dict[str, str]:
    """Name -> module of the imports under `if` at the top level of a package's file."""
    return {
        alias.name: node.module
        for block in ast.parse(inspect.getsource(sys.modules[package])).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module != package
        for alias in node.names
    }
