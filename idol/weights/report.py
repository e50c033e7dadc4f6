"""The differences between a file of weights and the network it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SHOWN = 6  # keys of each group that a message names; the report itself has them all


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
        groups = (self.missing, self.unexpected, self.reshaped, self.retyped, self.not_finite)
        return sum(map(len, groups))

    @property
    def fits(self) -> bool:
        """Whether the tensors can be loaded as they are."""
        return self.count == 0

    def lines(self, limit: int | None = _SHOWN) -> list[str]:
        """One heading per kind of problem and one line per key.

        limit: keys shown of each kind, the others counted; None: all
        """
        reshaped = [f"{key}: {had} instead of {wanted}" for key, had, wanted in self.reshaped]
        retyped = [f"{key}: {had} instead of {wanted}" for key, had, wanted in self.retyped]
        groups: list[tuple[str, Sequence[str]]] = [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("reshaped", reshaped),
            ("of another type", retyped),
            ("with NaN or infinite values", self.not_finite),
        ]
        lines = []
        for heading, entries in groups:
            if not entries:
                continue
            lines.append(f"{len(entries)} {heading}:")
            shown = entries if limit is None else entries[:limit]
            lines += [f"  {entry}" for entry in shown]
            if len(shown) < len(entries):
                lines.append(f"  ... and {len(entries) - len(shown)} more")
        return lines


class CheckpointError(ValueError):
    """A file that is not, or not safely, a checkpoint of this network.

    report: every key concerned, where weights do not fit a network; None otherwise
    """

    def __init__(self, message: str, report: LoadReport | None = None) -> None:
        # The message alone is in args, so that pickling rebuilds the exception; the report
        # travels in its __dict__.
        super().__init__(message)
        self.report = report


def compare(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Every difference between a network and tensors under its names; nothing is changed.

    model: on any device: only names, shapes and types are read
    """
    return differences(model.state_dict(), state)


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> LoadReport:
    """compare with the state dict of a network in the network's place."""
    reshaped, retyped, not_finite = [], [], []
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.is_meta and not _finite(tensor):
            not_finite.append(key)
        if key not in own:
            continue
        wanted = own[key]
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
    if tensor.numel() == 0:
        return True
    # NaN spreads through both extremes, so no mask as large as the weights is made.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
