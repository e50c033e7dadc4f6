"""Packages that import their public names on first use, so that scoring needs no PyTorch."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The module functions `__getattr__` (PEP 562) and `__dir__` of the package of this name.

    They know the modules of the package, and the names that its file imports under `if
    TYPE_CHECKING:`.
    """
    module = sys.modules[package]
    homes = {
        alias.name: node.module
        for block in ast.parse(inspect.getsource(module)).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module != package
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name in homes:
            found = getattr(importlib.import_module(homes[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            found = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(module, name, found)
        return found

    return get, lambda: sorted({*vars(module), *homes})
