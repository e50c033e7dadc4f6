"""Types of numpy arrays, for annotations (shapes and units stand in the docstrings), and the way to
them and back to tensors, which also goes without torch: an exported network is tracked without it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

HAS_TORCH = importlib.util.find_spec("torch") is not None


def host(values: Any) -> Floats32:
    """A tensor or array (...) as float32 on the host; a view of its memory if it is there."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float32, copy=False)
    array: Floats32 = values.float().numpy(force=True)
    return array


def tensor(array: NDArray[Any], device: Any = "cpu") -> Any:
    """An array (...) as a tensor on the device; as it is where torch is not installed."""
    if not HAS_TORCH:
        return array
    import torch

    return torch.from_numpy(array).to(device)
