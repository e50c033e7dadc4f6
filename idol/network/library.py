"""Any hierarchical backbone of the transformers library (ConvNeXt, Swin V2, PVT V2, ...)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from idol.config import BackboneConfig
from idol.files import parse_json
from idol.network.layers import Backbone

_STRIDES = (8, 16, 32)
# Side of the square image that tells the strides: several tokens at stride 32, so that no pooling
# to a single value looks like a stride.
_PROBE = 128
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class LibraryBackbone(Backbone):
    """The stages of strides 8, 16 and 32 of an AutoBackbone, as three feature maps.

    Batch norms stay in eval mode and their affine parameters get no gradient, as in the released
    ResNets, for small batches. Parameters that the three maps do not depend on get none either:
    DistributedDataParallel would wait for it.
    """

    def __init__(self, source: str) -> None:
        """source: a hub id, a local folder, or a JSON configuration with a "model_type".

        Raises:
            ImportError: the transformers package is not installed.
            ValueError: the source is none of these, or has no maps of strides 8, 16 and 32.
        """
        super().__init__()
        # The library keeps the precision of the file, which may be half.
        self.body = _load(source).float()
        self._norms = [m for m in self.body.modules() if isinstance(m, _BATCH_NORMS)]
        for norm in self._norms:
            norm.requires_grad_(False)
        self._indices, self.channels = self._probe(source)

    def portable(self, config: BackboneConfig) -> BackboneConfig:
        """The same configuration with a JSON source, so that a checkpoint of the trained network
        needs neither the hub nor the folder that its training started from."""
        return replace(config, source=json.dumps(self.body.config.to_diff_dict(), sort_keys=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) → features of strides 8, 16, 32."""
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            # As a whole: what a block is, each model of the library says in its own way.
            maps: list[Tensor] = checkpoint(self._maps, images, use_reentrant=False)
            return maps
        return self._maps(images)

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.body(pixel_values=images).feature_maps
        return [maps[index] for index in self._indices]

    def train(self, mode: bool = True) -> LibraryBackbone:
        """As nn.Module.train, but batch norms keep their statistics."""
        super().train(mode)
        for norm in self._norms:
            norm.eval()
        return self

    def _probe(self, source: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which of the body's maps have the strides asked for, and their channels."""
        image = next(self.body.parameters()).new_zeros(1, 3, _PROBE, _PROBE)
        self.body.eval()
        with torch.inference_mode(False), torch.enable_grad():
            maps = self.body(pixel_values=image).feature_maps
            # The deepest map of each stride, where several stages share one.
            index_of = {tuple(x.shape[2:]): index for index, x in enumerate(maps)}
            wanted = [(_PROBE // stride, _PROBE // stride) for stride in _STRIDES]
            if any(size not in index_of for size in wanted):
                strides = ", ".join(f"{_PROBE / x.shape[2]:.4g}" for x in maps)
                raise ValueError(
                    f"a backbone needs feature maps of strides 8, 16 and 32; those of {source!r} "
                    f"have {strides}. Take a hierarchical one (ConvNeXt, Swin V2, ResNet, "
                    "PVT V2, ...); plain vision transformers have a single stride."
                )
            indices = tuple(index_of[size] for size in wanted)
            total = torch.stack([maps[index].sum() for index in indices]).sum()
            learned = [p for p in self.body.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(total, learned, allow_unused=True)
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.body.train(self.training)
        return indices, tuple(maps[index].shape[1] for index in indices)


def _load(source: str) -> Any:
    """The library's backbone with all its stages as outputs."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig
    except ImportError as error:
        raise ImportError(
            "a backbone of name 'transformers' needs the transformers package: "
            "pip install transformers",
            name="transformers",
        ) from error
    try:
        auto: Any = AutoConfig  # the library does not annotate these
        if inline := source.lstrip().startswith("{"):
            try:
                fields = parse_json(source)
            except ValueError as error:
                raise ValueError(f"not JSON: {error}") from error
            if "model_type" not in fields:
                raise ValueError('a JSON source needs a "model_type", for example "convnext"')
            config = auto.for_model(**fields)
        else:
            config = auto.from_pretrained(source)
        config.out_indices = list(range(len(config.stage_names)))
        # Not AutoBackbone.from_pretrained, which knows no local folders and asks the hub first.
        body: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        return body(config) if inline else body.from_pretrained(source, config=config)
    # Some messages of the library list every model there is: only their start is told.
    except OSError as error:
        raise ValueError(
            f"{source!r} is no local folder with config.json and weights, and no model that can be "
            f"read from the Hugging Face hub: {str(error)[:300]}"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(
            f"{source!r} describes no backbone of the transformers library ({str(error)[:300]}). "
            "Give a model that AutoBackbone knows, for example 'facebook/convnext-tiny-224'."
        ) from error
