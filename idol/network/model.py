"""The network: images in, Outputs out. It keeps no state between frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from idol.config import Config
from idol.network import heads
from idol.network.deformable import DeformableNetwork
from idol.network.geometry import Geometry, level_shapes, of_padding, of_sizes
from idol.network.layers import MLP, without_autocast
from idol.network.mask_head import dynamic_masks
from idol.network.transformer import Transformer
from idol.structures import Outputs
from ops.linear import full_precision


class IDOL(DeformableNetwork):
    """Deformable DETR with dynamic masks and contrastive embeddings (paper Fig. 2).

    No layer looks across the images of a batch. It works under torch.autocast and in 16 bits
    (model.to(torch.bfloat16)): what needs more keeps float32 (see Outputs).
    """

    def __init__(self, config: Config) -> None:
        model, width = config.model, config.model.width
        if model.method != "idol":
            raise ValueError(
                f"{config.name!r} configures a network of clips ({model.method}): make it with "
                "idol.clips.build or idol.clips.load."
            )
        super().__init__(config, Transformer)
        self.embedding_head = MLP(width, width, model.embedding_size)
        dense = model.dense_auxiliary
        self.dense_head = heads.classifier(width, model.num_classes) if dense else None
        self.identity_head = (
            nn.Linear(model.embedding_size, model.num_identities) if model.num_identities else None
        )

    def forward(
        self,
        images: Tensor,
        padding: Tensor | None = None,
        sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        geometry: Geometry | None = None,
    ) -> Outputs:
        """One pass over independent images.

        images:   (B, 3, H, W) normalised, zero where padded; H and W multiples of 32
        padding:  (B, H, W) bool, True where padded; not needed with `geometry` or pairs in `sizes`
        sizes:    B pairs (height, width) of the un-padded images, whose geometry is remembered; or
                  a tensor (B, 2) beside padding
        geometry: what self.geometry returned for these sizes; for compiled graphs
        Raises: ValueError: a shape is wrong, no multiple of 32, or a size is outside the input.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "images must be (B, 3, H, W), normalised floating-point numbers, got "
                f"{images.dtype} {tuple(images.shape)}. See idol.images.transforms.normalise."
            )
        if images.shape[2] % 32 or images.shape[3] % 32:
            raise ValueError(
                f"H and W must be multiples of 32, got {tuple(images.shape[2:])}. "
                "Pad with idol.images.transforms.collate_images."
            )
        if geometry is None:
            geometry = self._geometry(images, padding, sizes)
        padded = level_shapes(*images.shape[2:])
        if geometry.shapes != padded or len(geometry.sizes) != len(images):
            raise ValueError(
                f"geometry is of {len(geometry.sizes)} images with levels {geometry.shapes}, but "
                f"the images {tuple(images.shape)} are {len(images)} with levels {padded}."
            )
        tokens = self.tokens(images, geometry.shapes)
        memory = self.transformer.encode(tokens, geometry)
        states, boxes, references = self.transformer.decode(memory, geometry, self.bbox_embed)
        # The heads are a thousandth of the arithmetic, so they are computed in full precision.
        with without_autocast(states):
            logits = self.class_logits(states)
            embeddings = full_precision(self.embedding_head(states[-1]))
            dense = self.dense_head if self.training else None
            dense_logits = None if dense is None else full_precision(dense(memory))
        return Outputs(
            logits=logits,
            boxes=boxes,
            references=references,
            refined=boxes[-1].detach(),
            embeddings=embeddings,
            mask_features=self.features_of_masks(memory, geometry.shapes),
            states=states,
            sizes=geometry.sizes,
            controller=self.controller,
            dense_logits=dense_logits,
            level_shapes=geometry.shapes,
            identity_head=self.identity_head,
        )

    def geometry(
        self,
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        device: torch.device | str = "cpu",
    ) -> Geometry:
        """What `forward` needs to know about a batch besides its pixels, remembered per size.

        padded: (H, W) of the input
        sizes:  B pairs (height, width) of the un-padded images, else ValueError, inside the input
        """
        return of_sizes(padded, sizes, self.config.model.width, device)

    def fold(self) -> Self:
        """Make the network faster at inference, in place, with outputs equal up to rounding.

        Frozen norms become part of their convolutions. Afterwards it can neither train nor be
        saved. Raises: ValueError: the network is in training mode.
        """
        if self.training:
            raise ValueError("only a network in eval mode can be folded; call .eval() first")
        self.backbone.fold()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster
        self.requires_grad_(False)
        self.folded = True
        return self

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train. Raises: ValueError: the network is folded and mode is True."""
        if mode and self.folded:
            raise ValueError(
                "a folded network is for inference only. Load the checkpoint again and train that."
            )
        return super().train(mode)

    def mask_logits(
        self, outputs: Outputs, images: Tensor | int, layers: Tensor | int, queries: Tensor
    ) -> Tensor:
        """Dynamic masks of (image, decoder layer, query) triples, all in one product.

        images, layers, queries: (n,) int64, or one image or layer of all
        returns: (n, H/4, W/4) logits over the padded input, at least float32
        """
        features = outputs.mask_features
        features = features[images] if isinstance(images, int) else features.index_select(0, images)
        # (height, width) of the un-padded image turn the reference into pixels, x first.
        centres = outputs.references[layers, images, queries] * outputs.sizes[images].flip(-1)
        with without_autocast(features):
            parameters = self.controller(outputs.states[layers, images, queries])
            scale = self.config.model.mask_coordinate_scale
            return dynamic_masks(features, parameters, centres, scale)

    def masks(self, outputs: Outputs, image: int, queries: Tensor, layer: int = -1) -> Tensor:
        """`mask_logits` of some queries (n,) int64 of one image: (n, H/4, W/4)."""
        return self.mask_logits(outputs, image, layer % len(outputs.states), queries)

    def _geometry(
        self,
        images: Tensor,
        padding: Tensor | None,
        sizes: Tensor | Sequence[tuple[int, int]] | None,
    ) -> Geometry:
        if sizes is not None and not isinstance(sizes, Tensor):
            return self.geometry((images.shape[2], images.shape[3]), sizes, images.device)
        if padding is None or padding.shape != images[:, 0].shape:
            raise ValueError(
                "padding must be (B, H, W) like the images, or else sizes B pairs (height, width); "
                f"got {None if padding is None else tuple(padding.shape)} beside images "
                f"{tuple(images.shape)}."
            )
        return of_padding(padding, self.config.model.width, sizes)
