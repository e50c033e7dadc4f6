"""The authors' names of the weights ↔ ours, both ways (specification 2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from idol.weights.report import CheckpointError

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

_ATTENTION = tuple(
    f"{name}.{leaf}"
    for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for leaf in ("weight", "bias")
)


def _pairs(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{leaf}" for name in names for leaf in ("weight", "bias"))


_CONV_NORM = (
    "weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
)  # fmt: skip
# Every released key, in the order of the released module: a pattern whose numbers order the
# repeated parts, and what may follow it. A Swin stage's blocks and its downsampling share an entry
# because the next stage's blocks come after both.
_ORDER: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), leaves)
    for pattern, leaves in (
        (r"detr\.detr\.transformer\.", ("level_embed",)),
        (
            r"detr\.detr\.transformer\.encoder\.layers\.(\d+)\.",
            (
                *(f"self_attn.{name}" for name in _ATTENTION),
                *_pairs("norm1", "linear1", "linear2", "norm2"),
            ),
        ),
        (
            r"detr\.detr\.transformer\.decoder\.layers\.(\d+)\.",
            (
                *(f"cross_attn.{name}" for name in _ATTENTION),
                *_pairs("norm1"),
                "self_attn.in_proj_weight",
                "self_attn.in_proj_bias",
                *_pairs("self_attn.out_proj", "norm2", "linear1", "linear2", "norm3"),
            ),
        ),
        (
            r"detr\.detr\.transformer\.decoder\.bbox_embed\.(\d+)\.layers\.(\d+)\.",
            ("weight", "bias"),
        ),
        (r"detr\.detr\.transformer\.", _pairs("reference_points")),
        (r"detr\.detr\.class_embed\.(\d+)\.", ("weight", "bias")),
        (r"detr\.detr\.bbox_embed\.(\d+)\.layers\.(\d+)\.", ("weight", "bias")),
        (r"detr\.detr\.", ("query_embed.weight",)),
        (r"detr\.detr\.input_proj\.(\d+)\.", _pairs("0", "1")),
        (
            r"detr\.detr\.backbone\.0\.backbone\.",
            tuple(f"stem.conv1.{leaf}" for leaf in _CONV_NORM),
        ),
        (
            r"detr\.detr\.backbone\.0\.backbone\.res([2-5])\.(\d+)\.",
            tuple(
                f"{convolution}.{leaf}"
                for convolution in ("shortcut", "conv1", "conv2", "conv3")
                for leaf in _CONV_NORM
            ),
        ),
        (
            r"detr\.detr\.backbone\.0\.backbone\.patch_embed\.",
            _pairs("proj", "norm"),
        ),
        (
            r"detr\.detr\.backbone\.0\.backbone\.layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.",
            (
                *_pairs("norm1"),
                "attn.relative_position_bias_table",
                "attn.relative_position_index",
                *_pairs("attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
                "reduction.weight",
                *_pairs("norm"),
            ),
        ),
        (r"detr\.detr\.backbone\.0\.backbone\.norm([0-3])\.", ("weight", "bias")),
        (r"detr\.controller\.layers\.(\d+)\.", ("weight", "bias")),
        (r"detr\.mask_head\.", _pairs("lay1", "lay2", "lay3", "lay4", "dcn")),
        (r"detr\.reid_embed_head\.layers\.(\d+)\.", ("weight", "bias")),
    )
)


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state dict to our names; one that has our names already stays as it is.

    A leading `module.` goes, on any keys. Of the box heads, stored under two names, either copy
    is enough. Separate query, key and value projections become the fused one. Counters
    (num_batches_tracked) are dropped: a frozen norm has none.
    state:   name → tensor
    returns: name → tensor, tensors unchanged
    Errors: CheckpointError for two copies of one weight that differ, for a backbone whose norms
            were folded into its convolutions, and for keys of another network.
    """
    stripped: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not key.endswith(".num_batches_tracked"):
            _put(stripped, key.removeprefix("module."), tensor, key)
    if not any(key.startswith("detr.") for key in stripped) and any(
        key.startswith(_OURS) for key in stripped
    ):
        return stripped
    foreign = [key for key in stripped if _ours(key) is None]
    if foreign:
        raise CheckpointError(
            f"{len(foreign)} of {len(stripped)} keys are not those of a released IDOL checkpoint, "
            f"which start with 'detr.': {', '.join(map(repr, foreign[:4]))}"
            f"{', ...' if len(foreign) > 4 else ''}. {_guess(foreign)}"
        )
    folded = [key for key in stripped if _FOLDED.fullmatch(key)]
    if folded:
        raise CheckpointError(
            f"the backbone's norms are folded into its convolutions ({folded[0]!r} and "
            f"{len(folded) - 1} more biases), which cannot be undone. Use the checkpoint from "
            "which this one was made."
        )
    renamed: dict[str, Tensor] = {}
    for key, tensor in _fused(stripped).items():
        ours = _ours(key.replace(_ALIAS, _ALIASED))
        assert ours is not None
        _put(renamed, ours, tensor, key)
    return renamed


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the released names, in the released order, box heads under both names.

    state:   our name → tensor
    returns: released name → tensor, the same tensors
    Errors: CheckpointError naming every weight that the released network has no place for: the
            tiny and the library backbones, dense_head, identity_head, class heads of several
            layers.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = released_name(key)
        named[name] = tensor
        if name.startswith(_ALIASED):
            named[name.replace(_ALIASED, _ALIAS)] = tensor
    ranks = {name: _rank(name) for name in named}
    homeless = [key for key in state if ranks[released_name(key)] is None]
    if homeless:
        parts = sorted({".".join(key.split(".")[:2]) for key in homeless})
        raise CheckpointError(
            f"the released network has no place for {len(homeless)} of {len(state)} weights, of "
            f"{', '.join(parts[:8])}{', ...' if len(parts) > 8 else ''}. It has a ResNet or Swin "
            "backbone and linear class heads, no dense head and no identity head: export such a "
            "network, or keep this one in our own format (idol.weights.checkpoint.save)."
        )
    return {name: named[name] for name in sorted(named, key=lambda name: ranks[name] or ())}


def released_name(key: str) -> str:
    """The released name of one of our keys (of the box heads, the first of their two)."""
    theirs, ours = next(pair for pair in _FROM_OURS if key.startswith(pair[1]))
    return theirs + key.removeprefix(ours)


def _ours(key: str) -> str | None:
    for released, ours in PREFIXES:
        if key.startswith(released):
            return ours + key.removeprefix(released)
    return None


def _rank(name: str) -> tuple[int, ...] | None:
    """Where a released key stands in the released order; None for no released key."""
    for section, (pattern, leaves) in enumerate(_ORDER):
        match = pattern.match(name)
        if match and name[match.end() :] in leaves:
            # A group that took no part (Swin's downsampling) stands after every number.
            numbers = [int(n) if n is not None else 1_000_000 for n in match.groups()]
            return (section, *numbers, leaves.index(name[match.end() :]))
    return None


def _put(state: dict[str, Tensor], name: str, tensor: Tensor, key: str) -> None:
    """Store a tensor under a name that another copy of it may already have taken."""
    if name in state and not _same(state[name], tensor):
        raise CheckpointError(
            f"{key!r} is stored twice (as {name!r} under another name) and the two copies differ. "
            "They are one weight of the network: remove the wrong one."
        )
    state.setdefault(name, tensor)


def _same(one: Tensor, other: Tensor) -> bool:
    """Equality of bits, so that NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return torch.equal(bits[0], bits[1])


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate q, k, v projections (rows in that order) into in_proj_weight and _bias."""
    separate: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in state.items():
        match = _SEPARATE.fullmatch(key)
        if match:
            name = f"{match[1]}in_proj_{match[3]}"
            separate.setdefault(name, {})[match[2]] = tensor
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


def _guess(keys: Iterable[str]) -> str:
    """Whose network has such keys, as a sentence for an error."""
    known = (
        (r"(layer[1-4]\.\d+\.|conv1\.weight|fc\.)", "an image classifier's (torchvision's ResNet)"),
        (r"(backbone\.bottom_up|proposal_generator|roi_heads)\.", "a detectron2 detector's"),
        (r"model\.(backbone|encoder|decoder|input_proj)\.", "a Hugging Face detector's"),
        (r"(transformer\.(en|de)coder\.layers\.|backbone\.0\.body\.)", "Deformable DETR's"),
        (r"(patch_embed|layers\.\d\.blocks)\.?", "a Swin image classifier's"),
        (r"(conv1_w|res\d_\d_)", "a Caffe2 model's"),
    )
    keys = list(keys)
    for pattern, owner in known:
        if any(re.match(pattern, key) for key in keys):
            return f"They look like {owner}: is this the right file?"
    return "Is this another network's file?"
