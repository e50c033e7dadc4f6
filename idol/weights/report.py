"""The differences between a file of weights and the network it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Every difference between stored tensors and a network; all keys are this code's."""

    missing: tuple[str, ...] = ()
    """Keys of the network that are not stored."""
    unexpected: tuple[str, ...] = ()
    """Stored keys that the network has not."""
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """(key, stored shape, the network's shape)."""
    retyped: tuple[tuple[str, str, str], ...] = ()
    """(key, stored type, the network's): whole numbers where fractions belong, or the reverse."""
    not_finite: tuple[str, ...] = ()
    """Stored keys with NaN or infinite values."""

    @property
    def count(self) -> int:
        """Number of problems."""
        return sum(len(getattr(self, group.name)) for group in fields(self))

    @property
    def fits(self) -> bool:
        """Whether the tensors can be loaded as they are."""
        return self.count == 0

    def lines(self, limit: int | None = 6) -> list[str]:
        """One heading per kind of problem and one line per key.

        limit: keys shown of each kind, the others counted; None: all
        """
        changed = "{}: {} instead of {}".format
        groups: dict[str, Sequence[str]] = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "reshaped": [changed(*entry) for entry in self.reshaped],
            "of another type": [changed(*entry) for entry in self.retyped],
            "with NaN or infinite values": self.not_finite,
        }
        lines = []
        for heading, entries in groups.items():
            if entries:
                lines += [f"{len(entries)} {heading}:", *(f"  {e}" for e in entries[:limit])]
            if limit is not None and len(entries) > limit:
                lines.append(f"  ... and {len(entries) - limit} more")
        return lines


class CheckpointError(ValueError):
    """A file that is not, or not safely, a checkpoint of this network.

    report: every key concerned, where weights do not fit a network; None otherwise
    """

    def __init__(self, message: str, report: LoadReport | None = None) -> None:
        # Pickling rebuilds an exception from args, the message alone; the report is in __dict__.
        super().__init__(message)
        self.report = report


def compare(own: nn.Module | Mapping[str, Tensor], state: Mapping[str, Tensor]) -> LoadReport:
    """Every difference between a network, or its state dict, and tensors under its names.

    own: on any device: only names, shapes and types are read
    """
    if isinstance(own, nn.Module):
        own = own.state_dict()
    reshaped, retyped, not_finite = [], [], []
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.is_meta and not _finite(tensor):
            not_finite.append(key)
        wanted = own.get(key, tensor)
        if wanted.shape != tensor.shape:
            reshaped.append((key, tuple(tensor.shape), tuple(wanted.shape)))
        elif wanted.is_floating_point() != tensor.is_floating_point():
            stored, own_type = (str(t.dtype).removeprefix("torch.") for t in (tensor, wanted))
            retyped.append((key, stored, own_type))
    return LoadReport(
        missing=tuple(key for key in own if key not in state),
        unexpected=tuple(key for key in state if key not in own),
        reshaped=tuple(reshaped),
        retyped=tuple(retyped),
        not_finite=tuple(not_finite),
    )


def _finite(tensor: Tensor) -> bool:
    # NaN spreads through both extremes, so no mask as large as the weights is made.
    return tensor.numel() == 0 or all(map(torch.isfinite, torch.aminmax(tensor)))
