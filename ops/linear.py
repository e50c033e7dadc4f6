"""Linear layers by the fastest product at hand, and where 16 bits are too few."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN multiplies float32 matrices 1.2 to 1.8 times as fast as the BLAS behind nn.Linear on an AMD
# EPYC with AVX-512 (5100 tokens of 256 channels, one thread). torch.compile calls the same
# operator; a build of torch without it goes the usual way.
_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
# Of 16 bits it saves adding the bias and ReLU in passes of their own.
_TYPES = {torch.float32} if _ONEDNN else set()
if _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _TYPES.add(torch.bfloat16)


def full_precision(x: Tensor) -> Tensor:
    """x in float32 where it has 16 bits, as it is otherwise.

    Eight bits of mantissa move a sampling point or a box's side by whole pixels.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def linear(layer: nn.Linear, x: Tensor, *, relu: bool = False) -> Tensor:
    """layer(x), then ReLU if asked, by the fastest product there is for x.

    x: (..., inputs) → (..., outputs)
    """
    weight, bias = layer.weight, layer.bias
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _TYPES
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
    ):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, "relu" if relu else "none", [], ""
        )
        return out
    # In place: the product itself is not needed again, not even by its gradient. There as a matrix:
    # of more dimensions it is a view, whose change in place has a gradient that copies it.
    if relu and x.ndim > 2 and torch.is_grad_enabled():
        return F.relu(layer(x.flatten(0, -2)), inplace=True).view(*x.shape[:-1], len(weight))
    out = layer(x)
    return F.relu(out, inplace=True) if relu else out
