"""The authors' names of the weights ↔ ours, both ways (specification 2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from idol.weights.report import CheckpointError

_log = logging.getLogger(__name__)

PREFIXES = (
    ("detr.detr.backbone.0.backbone.", "backbone."),
    ("detr.detr.transformer.encoder.layers.", "transformer.encoder."),
    ("detr.detr.transformer.decoder.layers.", "transformer.decoder."),
    ("detr.detr.transformer.", "transformer."),
    ("detr.detr.query_embed.", "transformer.query_embed."),
    ("detr.detr.", ""),
    ("detr.mask_head.", "mask_branch."),
    ("detr.reid_embed_head.", "embedding_head."),
    ("detr.controller.", "controller."),
)
"""(released prefix, ours), tried in order; the rest of a key is the same in both."""

# From our names the longest prefix counts, and "" fits where no other does.
_FROM_OURS = sorted(PREFIXES, key=lambda pair: len(pair[1]), reverse=True)
# The released decoder registers its box heads a second time under this name.
_ALIAS = "detr.detr.transformer.decoder.bbox_embed."
_ALIASED = "detr.detr.bbox_embed."
# What only our naming has: a state dict saved with torch.save(model.state_dict(), path).
_OURS = ("transformer.query_embed.", "mask_branch.", "embedding_head.")
_SEPARATE = re.compile(r"(.*\.self_attn\.)([qkv])_proj(?:\.|_)(weight|bias)")
_FOLDED = re.compile(r".*\.backbone\..*(stem\.conv1|conv[123]|shortcut)\.bias")
# What the released network has not: other backbones, training heads, class heads of several layers.
_NO_PLACE = re.compile(
    r"backbone\.(?!stem\.|res\d\.|patch_embed\.|layers\.\d|norm\d)|dense_head\.|identity_head\."
    r"|class_embed\.\d+\.layers\."
)
# The parts of the released module in its order. Within a part the order is ours, but for the
# shortcut of a ResNet's block, which comes first there.
_PARTS = (
    "detr.detr.transformer.level_embed",
    "detr.detr.transformer.encoder.",
    "detr.detr.transformer.decoder.layers.",
    _ALIAS,
    "detr.detr.transformer.reference_points.",
    "detr.detr.class_embed.",
    _ALIASED,
    "detr.detr.query_embed.",
    "detr.detr.input_proj.",
    "detr.detr.backbone.",
    "detr.controller.",
    *(f"detr.mask_head.{layer}." for layer in ("lay1", "lay2", "lay3", "lay4", "dcn")),
    "detr.reid_embed_head.",
)
_BLOCK = re.compile(r".*\.res(\d)\.(\d+)\.(?:shortcut|conv(\d))\.")


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state dict to our names; one that has our names already stays as it is.

    Prefixes of wrappers are taken off: `module.` (DistributedDataParallel), `_orig_mod.`
    (torch.compile), and `model.` (Lightning) where all keys have it. One copy of the box heads is
    enough. Separate query, key and value projections are joined; other tensors are unchanged. The
    counters num_batches_tracked are dropped: a frozen norm has none.
    Raises: CheckpointError: two copies of one weight differ, the backbone's norms were folded
        into its convolutions, or keys are of another network.
    """
    stripped = unwrapped(state)
    if not any(key.startswith("detr.") for key in stripped) and any(
        key.startswith(_OURS) for key in stripped
    ):
        return stripped
    if foreign := [key for key in stripped if not _ours(key)]:
        raise CheckpointError(
            f"{len(foreign)} of {len(stripped)} keys are not those of a released IDOL checkpoint, "
            f"which start with 'detr.': {', '.join(map(repr, foreign[:4]))}"
            f"{', ...' if len(foreign) > 4 else ''}. {_guess([*state, *foreign])}"
        )
    if folded := [key for key in stripped if _FOLDED.fullmatch(key)]:
        raise CheckpointError(
            f"the backbone's norms are folded into its convolutions ({folded[0]!r} and "
            f"{len(folded) - 1} more biases), which cannot be undone. Use the checkpoint from "
            "which this one was made."
        )
    renamed: dict[str, Tensor] = {}
    for key, tensor in _fused(stripped).items():
        _put(renamed, _ours(key.replace(_ALIAS, _ALIASED)), tensor, key)
    return renamed


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without wrappers' prefixes and counters; see from_released. Raises: as it."""
    names = {key: _unwrapped(key) for key in state if not key.endswith(".num_batches_tracked")}
    if all(name.startswith("model.") for name in names.values()):
        names = {key: _unwrapped(name.removeprefix("model.")) for key, name in names.items()}
    stripped: dict[str, Tensor] = {}
    for key, name in names.items():
        _put(stripped, name, state[key], key)
    if wrapped := names.keys() - stripped.keys():
        _log.info("%d weights are stored under a wrapper's prefix: %r", len(wrapped), min(wrapped))
    return stripped


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the released names, in their order, box heads under both of theirs.

    state: our name → tensor, in the order of the network's own state dict
    Raises: CheckpointError: the released network has no place for some of the weights: those of
        another backbone than ResNet or Swin, training heads, class heads of several layers.
    """
    if homeless := [key for key in state if _NO_PLACE.match(key)]:
        parts = sorted({".".join(key.split(".")[:2]) for key in homeless})
        raise CheckpointError(
            f"the released network has no place for {len(homeless)} of {len(state)} weights, of "
            f"{', '.join(parts[:8])}{', ...' if len(parts) > 8 else ''}. It has a ResNet or Swin "
            "backbone and linear class heads, no dense head and no identity head: export such a "
            "network, or keep this one in our own format (idol.weights.checkpoint.save)."
        )
    named = {released_name(key): tensor for key, tensor in state.items()}
    named |= {n.replace(_ALIASED, _ALIAS): t for n, t in named.items() if n.startswith(_ALIASED)}
    return {name: named[name] for name in sorted(named, key=_place)}


def released_name(key: str) -> str:
    """The released name of one of our keys (of the box heads, the first of their two)."""
    theirs, ours = next(pair for pair in _FROM_OURS if key.startswith(pair[1]))
    return theirs + key.removeprefix(ours)


def _ours(key: str) -> str:
    """Our name of a released key; "" for one of another network."""
    found = (ours + key.removeprefix(theirs) for theirs, ours in PREFIXES if key.startswith(theirs))
    return next(found, "")


def _place(name: str) -> tuple[int, ...]:
    """What the released order sorts a key by; equal for keys that stay in our order."""
    part = next(i for i, prefix in enumerate(_PARTS) if name.startswith(prefix))
    block = _BLOCK.match(name)
    return (part, *(int(number or 0) for number in block.groups())) if block else (part,)


def _unwrapped(key: str) -> str:
    """A key without the prefixes of torch.compile and DistributedDataParallel."""
    return key.replace("_orig_mod.", "").removeprefix("module.")


def _put(state: dict[str, Tensor], name: str, tensor: Tensor, key: str) -> None:
    """Store a tensor under a name that another copy of it may already have taken."""
    other = state.setdefault(name, tensor)
    if other is tensor:
        return
    # By bits, so that NaN equals itself.
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)]
    alike = (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
    if not alike or not torch.equal(*bits):
        raise CheckpointError(
            f"{key!r} is stored twice (as {name!r} under another name) and the two copies differ. "
            "They are one weight of the network: remove the wrong one."
        )


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate q, k, v projections (rows in that order) into in_proj_weight and _bias."""
    separate: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in state.items():
        if match := _SEPARATE.fullmatch(key):
            separate.setdefault(f"{match[1]}in_proj_{match[3]}", {})[match[2]] = tensor
        else:
            rest[key] = tensor
    for name, parts in separate.items():
        if set(parts) != set("qkv") or len({part.shape[1:] for part in parts.values()}) != 1:
            shapes = {part: tuple(tensor.shape) for part, tensor in sorted(parts.items())}
            raise CheckpointError(
                f"{name!r} is stored as separate projections q, k, v, of which there are {shapes}; "
                "all three are needed, of the same width."
            )
        _put(rest, name, torch.cat([parts[part] for part in "qkv"]), name)
    return rest


def _guess(keys: Sequence[str]) -> str:
    """Whose network has such keys, as a sentence for an error."""
    known = (
        (r"(layer[1-4]\.\d+\.|conv1\.weight|fc\.)", "an image classifier's (torchvision's ResNet)"),
        (r"(backbone\.bottom_up|proposal_generator|roi_heads)\.", "a detectron2 detector's"),
        (r"model\.(backbone|encoder|decoder|input_proj)\.", "a Hugging Face detector's"),
        (r"(transformer\.(en|de)coder\.layers\.|backbone\.0\.body\.)", "Deformable DETR's"),
        (r"(patch_embed|layers\.\d\.blocks)\.?", "a Swin image classifier's"),
        (r"(conv1_w|res\d_\d_)", "a Caffe2 model's"),
    )
    for pattern, owner in known:
        if any(re.match(pattern, key) for key in keys):
            return f"They look like {owner}: is this the right file?"
    return "Is this another network's file?"
