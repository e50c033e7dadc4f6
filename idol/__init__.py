"""IDOL, online video instance segmentation, in plain PyTorch.

What is imported here is loaded when it is first used: scoring results takes no PyTorch.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idol import config, evaluation, presets, segmenter, structures, tracker
    from idol.checkpoint import from_pretrained, load
    from idol.config import Config
    from idol.model import IDOL
    from idol.segmenter import OnlineSegmenter

__all__ = [
    "IDOL",
    "Config",
    "OnlineSegmenter",
    "config",
    "evaluation",
    "from_pretrained",
    "load",
    "presets",
    "segmenter",
    "structures",
    "tracker",
]

_HOMES = {
    "IDOL": "model",
    "Config": "config",
    "OnlineSegmenter": "segmenter",
    "from_pretrained": "checkpoint",
    "load": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562), a name of `__all__` or a module of this package."""
    if name in _HOMES:
        found = getattr(importlib.import_module(f"idol.{_HOMES[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"idol.{name}") is not None:
        found = importlib.import_module(f"idol.{name}")
    else:
        raise AttributeError(f"module 'idol' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Names of `__all__` too, loaded or not."""
    return sorted({*globals(), *__all__})
