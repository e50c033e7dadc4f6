"""The network: images in, Outputs out. It keeps no state between frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol import backbone
from idol.config import Config, ModelConfig
from idol.mask_head import MaskBranch, dynamic_masks, num_dynamic_parameters
from idol.position_encoding import sine_encoding
from idol.structures import Outputs
from idol.transformer import MLP, NUM_LEVELS, Pyramid, Transformer, valid_ratios


def _projection(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Backbone channels to the transformer's width; a 3x3 kernel also halves the resolution."""
    convolution = nn.Conv2d(channels, width, kernel, 2 if kernel == 3 else 1, kernel // 2)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.GroupNorm(min(32, width // 2), width))


def _classifier(width: int, classes: int) -> nn.Linear:
    """A linear class head that starts with every class at a score of 0.01."""
    head = nn.Linear(width, classes)
    nn.init.constant_(head.bias, -math.log(99.0))
    return head


def _class_head(config: ModelConfig) -> nn.Linear | MLP:
    """Class logits of one decoder layer; scores start at 0.01 in both kinds."""
    if config.class_head == "linear":
        return _classifier(config.width, config.num_classes)
    head = MLP(config.width, config.width, config.num_classes)
    head.layers[-1] = _classifier(config.width, config.num_classes)
    return head


def _box_head(width: int, side: float) -> MLP:
    """Box deltas that start at zero, with this bias on width and height."""
    head = MLP(width, width, 4)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.0, 0.0, side, side]))
    return head


def _controller(width: int, parameters: int) -> MLP:
    """Decoder state to dynamic mask parameters."""
    head = MLP(width, width, parameters)
    for layer in head.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return head


class IDOL(nn.Module):
    """Deformable DETR with dynamic masks and contrastive embeddings (paper Fig. 4).

    Key and reference frames are just images of one batch: weights are shared and no layer looks
    across images.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.config = config
        width = model.width
        self.backbone = backbone.build(model.backbone)
        inputs = [*self.backbone.channels, self.backbone.channels[-1]]
        self.input_proj = nn.ModuleList(
            _projection(channels, width, 3 if level == NUM_LEVELS - 1 else 1)
            for level, channels in enumerate(inputs)
        )
        self.transformer = Transformer(model)
        layers = model.decoder_layers
        self.class_embed = nn.ModuleList(_class_head(model) for _ in range(layers))
        # The first layer starts from boxes of a fixed size, the others from no change.
        self.bbox_embed = nn.ModuleList(
            _box_head(width, -2.0 if layer == 0 else 0.0) for layer in range(layers)
        )
        self.mask_branch = MaskBranch(width, model.mask_channels)
        self.controller = _controller(width, num_dynamic_parameters(model.mask_channels))
        self.embedding_head = MLP(width, width, model.embedding_size)
        self.dense_head = _classifier(width, model.num_classes) if model.dense_auxiliary else None
        self.identity_head = (
            nn.Linear(model.embedding_size, model.num_identities) if model.num_identities else None
        )

    def forward(self, images: Tensor, padding: Tensor, sizes: Tensor | None = None) -> Outputs:
        """One pass over any number of independent images.

        images:  (B, 3, H, W) normalised, zero where padded; H and W multiples of 32
        padding: (B, H, W) bool, True where padded
        sizes:   (B, 2) un-padded (height, width); read off the padding if None
        returns: Outputs
        Errors: ValueError for a wrong shape or sides that are not multiples of 32.
        """
        if images.ndim != 4 or images.shape[1] != 3 or padding.shape != images[:, 0].shape:
            raise ValueError(
                "images must be (B, 3, H, W) and padding (B, H, W), got "
                f"{tuple(images.shape)} and {tuple(padding.shape)}"
            )
        if images.shape[2] % 32 or images.shape[3] % 32:
            raise ValueError(
                f"H and W must be multiples of 32, got {tuple(images.shape[2:])}. "
                "Pad with idol.transforms.collate_images."
            )
        if sizes is None:
            sizes = torch.stack([(~padding[:, :, 0]).sum(1), (~padding[:, 0, :]).sum(1)], -1)
        pyramid = self._pyramid(images, padding)
        memory = self.transformer.encode(pyramid)
        states, boxes, references = self.transformer.decode(memory, pyramid, self.bbox_embed)
        logits = torch.stack([f(s) for f, s in zip(self.class_embed, states, strict=True)])
        return Outputs(
            logits=logits,
            boxes=boxes,
            references=references,
            refined=boxes[-1].detach(),
            embeddings=self.embedding_head(states[-1]),
            mask_features=self.mask_branch(self._maps(memory, pyramid.shapes)),
            states=states,
            sizes=sizes,
            controller=self.controller,
            dense_logits=self.dense_head(memory) if self.dense_head and self.training else None,
            level_shapes=pyramid.shapes,
            identity_head=self.identity_head,
        )

    def mask_logits(
        self, outputs: Outputs, images: Tensor, layers: Tensor, queries: Tensor
    ) -> Tensor:
        """Dynamic masks of any (image, decoder layer, query) triples, all in one product.

        images, layers, queries: (n,) int64
        returns: (n, H/4, W/4) logits over the padded input
        """
        order = torch.argsort(images, stable=True)
        images, layers, queries = images[order], layers[order], queries[order]
        parameters = self.controller(outputs.states[layers, images, queries])
        # (height, width) of the un-padded image turn the reference into pixels, x first.
        centres = outputs.references[layers, images, queries] * outputs.sizes[images].flip(-1)
        masks = dynamic_masks(
            outputs.mask_features, images, parameters, centres,
            self.config.model.mask_coordinate_scale,
        )  # fmt: skip
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return masks[back]

    def masks(self, outputs: Outputs, image: int, queries: Tensor, layer: int = -1) -> Tensor:
        """Mask logits of some queries of one image.

        queries: (n,) int64
        returns: (n, H/4, W/4) logits over the padded input
        """
        layer %= len(outputs.states)
        return self.mask_logits(
            outputs, torch.full_like(queries, image), torch.full_like(queries, layer), queries
        )

    def _pyramid(self, images: Tensor, padding: Tensor) -> Pyramid:
        features = self.backbone(images)
        projected = [f(x) for f, x in zip(self.input_proj, [*features, features[-1]], strict=True)]
        full = padding[:, None].float()
        paddings = [F.interpolate(full, size=x.shape[-2:])[:, 0].bool() for x in projected[:-1]]
        # The released code makes the last level's mask from the stride-8 one, not the image's.
        last = F.interpolate(paddings[0][:, None].float(), size=projected[-1].shape[-2:])
        paddings.append(last[:, 0].bool())
        width = self.config.model.width
        positions = [
            sine_encoding(p, width).flatten(2).transpose(1, 2) + embed
            for p, embed in zip(paddings, self.transformer.level_embed, strict=True)
        ]
        return Pyramid(
            tokens=torch.cat([x.flatten(2).transpose(1, 2) for x in projected], 1),
            positions=torch.cat(positions, 1),
            padding=torch.cat([p.flatten(1) for p in paddings], 1),
            valid_ratios=valid_ratios(paddings),
            shapes=tuple((x.shape[2], x.shape[3]) for x in projected),
        )

    @staticmethod
    def _maps(memory: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The first three levels of the encoder's tokens as (B, C, h, w) maps."""
        levels = torch.split(memory, [h * w for h, w in shapes], dim=1)
        return [
            level.transpose(1, 2).reshape(len(memory), -1, *shape)
            for level, shape in zip(levels[:3], shapes[:3], strict=True)
        ]
