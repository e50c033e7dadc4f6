"""Every number of the method: typed, documented, checked, and home to exactly one default each."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from idol.checks import positive, require, unit
from idol.tracker_config import TrackerConfig as TrackerConfig

T = TypeVar("T")

Speed = Literal["exact", "fast"]
"""See DetectConfig.speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """What turns images into features of strides 8, 16, 32 (specification 1.2)."""

    name: Literal["resnet50", "resnet101", "swin", "transformers", "tiny"] = "resnet50"
    """resnet50 / resnet101 (frozen batch norm) and swin as released; transformers is any
    hierarchical backbone of that library, named by source; tiny is a small trainable GroupNorm
    residual network that needs no pre-trained weights."""
    frozen_stages: int | None = None
    """Stem and the first frozen_stages - 1 stages get no gradient. None, as released: 2 for the
    ResNets, 0 for the others. Only ResNets and swin can freeze stages."""
    swin_embed: int = 192
    """Channels of swin at stride 4, doubled at every stage (the default sizes are Swin-L)."""
    swin_depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each of swin's four stages."""
    swin_heads: tuple[int, ...] = (6, 12, 24, 48)
    """Attention heads of each of swin's four stages."""
    swin_window: int = 12
    """Side of swin's attention windows in tokens; every second block shifts them by half of it."""
    swin_drop_path: float = 0.3
    """Chance of skipping a branch of swin's last block while training; rises linearly from 0."""
    source: str = ""
    """Of name transformers: a hub id, a local folder with config.json and weights, or a JSON
    configuration with a "model_type" for random weights."""
    tiny_channels: tuple[int, ...] = (16, 32, 64, 96, 128)
    """Channels of tiny at strides 2, 4, 8, 16, 32."""

    def __post_init__(self) -> None:
        require(
            0 <= (self.frozen_stages or 0) <= 5, f"frozen_stages is 0..5, got {self.frozen_stages}"
        )
        require(
            not self.frozen_stages or self.name not in ("tiny", "transformers"),
            f"a {self.name!r} backbone cannot freeze stages, got frozen_stages="
            f"{self.frozen_stages}. Set it to 0.",
        )
        require(
            len(self.tiny_channels) == 5 and all(c % 8 == 0 for c in self.tiny_channels),
            f"tiny_channels needs 5 numbers divisible by 8, got {self.tiny_channels}",
        )
        for name in ("swin_depths", "swin_heads"):
            value = getattr(self, name)
            require(
                len(value) == 4 and min(value) > 0, f"{name} needs 4 positive numbers, got {value}"
            )
        require(
            self.swin_embed > 0
            and all(self.swin_embed * 2**i % h == 0 for i, h in enumerate(self.swin_heads)),
            "swin_embed, doubled at every stage, must be divisible by swin_heads, got "
            f"{self.swin_embed} and {self.swin_heads}",
        )
        require(self.swin_window >= 2, f"swin_window must be at least 2, got {self.swin_window}")
        require(
            0.0 <= self.swin_drop_path < 1.0,
            f"swin_drop_path must lie in [0, 1), got {self.swin_drop_path}",
        )
        require(
            (self.name == "transformers") == bool(self.source),
            "source names the backbone of the transformers library: give it exactly when name is "
            f"'transformers', got name={self.name!r} and source={self.source!r}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Deformable DETR with dynamic masks and contrastive embeddings (paper Sec. 3.1, 3.2)."""

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
    """Also classify every encoder token while training (ours, not in the paper): a dense signal
    that lets a small network learn within minutes. No part of inference."""
    class_head: Literal["linear", "mlp"] = "linear"
    """What turns decoder states into class logits: one linear layer (released), or the three-layer
    feed-forward network of the paper's text (Sec. 3.1)."""
    num_identities: int = 0
    """M, instances of the training set that an "ID head" on the embeddings tells apart (the
    baseline of the ablation on embeddings); 0: no such head, as released. No part of inference."""
    checkpoint_activations: bool = False
    """While training, keep only the inputs of every encoder, decoder and backbone block, and run
    the block again in the backward pass: same gradients, less memory, about a third more time."""

    def __post_init__(self) -> None:
        positive(self, "num_classes", "num_queries", "width", "num_heads", "num_points")
        positive(self, "encoder_layers", "decoder_layers", "feedforward", "embedding_size")
        positive(self, "mask_channels", "mask_coordinate_scale")
        require(
            self.num_identities >= 0, f"num_identities must be 0 or more, got {self.num_identities}"
        )
        unit(self, "dropout")
        require(
            self.width % self.num_heads == 0 and self.width % 4 == 0,
            f"width must be divisible by num_heads and by 4, got {self.width} / {self.num_heads}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformConfig:
    """From decoded frames to network inputs (specification 4.1, 5.2)."""

    train_short_sides: tuple[int, ...] = (320, 352, 392, 416, 448, 480, 512, 544, 576, 608, 640)
    """The shorter side of both frames of a training pair is drawn from these, in pixels."""
    train_max_side: int = 768
    """Longest side allowed while training."""
    test_short_side: int = 480
    """Shorter side at inference."""
    test_max_side: int = 1333
    """Longest side allowed at inference."""
    stretch: tuple[int, int] | None = None
    """(height, width): resize every frame to exactly this, ignoring its aspect ratio, for training
    and inference alike. None: keep the aspect ratio, as released."""
    flip_probability: float = 0.5
    """Horizontal flip, the same for both frames."""
    crop_probability: float = 0.5
    """Chance of a random crop before resizing."""
    crop_range: tuple[int, int] = (384, 600)
    """Smallest and largest crop side in original pixels."""
    shared_crop: bool = False
    """Use one crop window for both frames; released: independent windows."""
    independent: bool = False
    """Transform key and reference independently of one another: flip, sizes, whether to crop and
    where. For pairs.pseudo, where that is all that makes them differ (specification 5.3)."""
    crop_short_sides: tuple[int, ...] = ()
    """Before a crop, resize the shorter side to one of these; empty: crop at original size.
    Released: 400, 500, 600 for pseudo pairs."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast, saturation jitter, one draw for a pair (released: 0)."""
    scale_jitter: float = 0.0
    """With stretch: random crop of up to this fraction of each side, one window for the pair."""
    size_divisor: int = 32
    """Padded sides are multiples of this."""

    def __post_init__(self) -> None:
        unit(self, "flip_probability", "crop_probability", "color_jitter", "scale_jitter")
        positive(self, "train_max_side", "test_short_side", "test_max_side", "size_divisor")
        require(len(self.train_short_sides) > 0, "train_short_sides must not be empty")
        require(
            0 < self.crop_range[0] <= self.crop_range[1],
            f"crop_range must be (smallest, largest), got {self.crop_range}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PairConfig:
    """How key and reference frames are paired (paper Sec. 3.2, specification 5.2)."""

    max_gap: int = 10
    """Largest distance in frames between key and reference."""
    pairs_per_video: int = 0
    """Rows per video; 0: one row per frame of the video."""
    order: Literal["released", "any"] = "released"
    """released: the earlier frame is the key; any: as drawn (the paper's text)."""
    pseudo: bool = False
    """Pair every annotated frame with itself, for pre-training on still images such as COCO
    (specification 5.3); transforms.independent then makes key and reference differ."""
    max_side: int = 0
    """Resize stored frames so that the longer side is at most this; 0: keep the bytes."""
    seed: int = 0
    """Seeds the choice of pairs, per video, and the order of the rows."""
    rows_per_shard: int = 512
    """Rows per parquet file, at most."""
    jpeg_quality: int = 95
    """Quality of frames that have to be encoded: resized ones, PNG files, frames of video files."""
    max_reject_fraction: float = 0.5
    """The stage fails where a larger fraction of the videos has a fault."""

    def __post_init__(self) -> None:
        positive(self, "max_gap", "rows_per_shard")
        require(self.pairs_per_video >= 0, f"pairs_per_video >= 0, got {self.pairs_per_video}")
        require(self.max_side >= 0, f"max_side must be >= 0, got {self.max_side}")
        require(0 <= self.jpeg_quality <= 100, f"jpeg_quality is 0..100, got {self.jpeg_quality}")
        unit(self, "max_reject_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignmentConfig:
    """Optimal-transport assignment and positive/negative selection (specification 3.1, 3.2)."""

    cost: Literal["released", "exact", "paper"] = "released"
    """Cost of a query for a truth. released: focal class cost - giou_weight * GIoU, + 100 outside
    the centre prior and + 10000 out of every truth's reach, summed in float32, where far queries
    differ in steps of 1e-3 only. exact: the same in float64, so that the penalties order queries
    and hide no difference between them. paper, Sec. 3.1 ("class prediction and the similarity of
    predicted and ground truth boxes"): no centre prior; class, L1 and GIoU under paper_weights."""
    paper_weights: tuple[float, float, float] = (2.0, 5.0, 2.0)
    """Weights of the focal class cost, the L1 distance and -GIoU with cost "paper", which names
    none: SET_COST_CLASS, _BOX and _GIOU of the released files, which the released code ignores."""
    giou_weight: float = 3.0
    """Weight of -GIoU with costs "released" and "exact"; the focal class cost has weight 1."""
    center_radius: float = 2.5 / 32
    """Half side of the centre prior's square, in normalised coordinates."""
    candidates: int = 10
    """The dynamic k of a truth is the sum of this many largest IoUs."""
    negative_candidates: int = 100
    """The same for the set whose complement are the negatives of the contrastive loss."""
    repair: Literal["released", "exact"] = "released"
    """How a truth that lost all its queries to others gets one. released: takes its cheapest free
    query, and truths that choose the same one both keep it, though it answers for the first of
    them only. exact: the free queries are dealt out one to one at the least total cost, so every
    truth has a query of its own wherever there are as many queries as truths."""
    selection: Literal["optimal_transport", "iou"] = "optimal_transport"
    """Positives and negatives of the contrastive loss. optimal_transport: the paper's. iou: the
    baseline of its ablation (Tables 6, 7; A.2), by the IoU of box and truth alone."""
    positives: Literal["released", "paper"] = "released"
    """With optimal_transport. released: an assignment, a query shows one truth only (Sec. 3.1).
    paper, A.2: the m1 queries of lowest cost for each truth by itself, shared or not."""
    negatives: Literal["released", "paper"] = "released"
    """With optimal_transport. released: what an assignment of negative_candidates leaves over.
    paper, A.2: the Q - m2 queries of highest cost for each truth by itself. They differ where
    truths compete."""
    iou_positive: float = 0.7
    """With selection "iou": queries whose box has a larger IoU with the truth are positives."""
    iou_negative: float = 0.3
    """With selection "iou": queries whose box has a smaller one are negatives."""

    def __post_init__(self) -> None:
        positive(self, "center_radius", "candidates", "negative_candidates")
        unit(self, "iou_positive", "iou_negative")
        require(
            self.iou_negative <= self.iou_positive,
            "iou_negative must not exceed iou_positive, or a query were both: got "
            f"{self.iou_negative} and {self.iou_positive}",
        )
        require(
            min(self.paper_weights) >= 0 and max(self.paper_weights) > 0,
            f"paper_weights must be >= 0 and not all 0, got {self.paper_weights}",
        )

    @classmethod
    def paper(cls) -> AssignmentConfig:
        """Sec. 3.1 and Appendix A.2 as written, with no conflict between truths left unsettled."""
        return cls(cost="paper", repair="exact", positives="paper", negatives="paper")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Loss weights (specification 3.4)."""

    ce: float = 2.0
    """Sigmoid focal classification loss."""
    bbox: float = 5.0
    """L1 of normalised cxcywh boxes."""
    giou: float = 2.0
    """1 - GIoU."""
    mask: float = 2.0
    """Sigmoid focal loss of mask logits."""
    dice: float = 5.0
    """Dice loss of masks."""
    reid: float = 2.0
    """Contrastive loss, paper Eq. 4."""
    reid_aux: float = 3.0
    """Squared error of cosines, positives against sampled negatives (released code only)."""
    identity: float = 0.0
    """Cross-entropy of the "ID head" (ablation, Tables 6 and 7): an M-way classification of the
    training set's instances, from the embeddings of the matched queries of both frames. 0: no
    head. Beside the contrastive losses, or instead of them (reid and reid_aux 0)."""
    dense: float = 2.0
    """Dense auxiliary classification of encoder tokens; counts only with dense_auxiliary."""
    focal_alpha: float = 0.25
    """Alpha of every focal loss."""
    focal_gamma: float = 2.0
    """Gamma of every focal loss."""
    negatives_per_positive: int = 10
    """Negatives sampled per positive in the auxiliary embedding loss."""
    supervise_reference: bool = False
    """Detection and mask losses on the reference frame too (released: key frame only)."""
    normaliser: Literal["local", "global"] = "local"
    """Detection losses are divided by the matched queries of this worker's part of the batch
    (local, as released) or by the mean over all workers (global, which makes the gradient that of
    the whole batch, however it is cut)."""

    def __post_init__(self) -> None:
        unit(self, "focal_alpha")
        for name in (
            "ce", "bbox", "giou", "mask", "dice", "reid", "reid_aux", "identity", "dense",
        ):  # fmt: skip
            require(getattr(self, name) >= 0, f"{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Optimisation (specification 6)."""

    pairs_per_batch: int = 32
    """Key/reference pairs of one optimiser step, over all workers together."""
    steps: int = 12000
    """Optimiser steps."""
    learning_rate: float = 1e-4
    """AdamW learning rate."""
    backbone_rate: float = 0.1
    """Factor on the learning rate for backbone parameters."""
    weight_decay: float = 1e-4
    """AdamW weight decay, on every parameter."""
    schedule: Literal["step", "cosine"] = "step"
    """step: times 0.1 at each milestone (released); cosine: to final_rate of the peak."""
    milestones: tuple[int, ...] = (8000,)
    """Steps at which the rate drops (schedule step)."""
    warmup_steps: int = 0
    """Linear warm-up."""
    final_rate: float = 0.02
    """Last learning rate as a fraction of the peak (schedule cosine)."""
    clip_norm: float = 0.01
    """Clip of the whole model's gradient norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the network's products in bfloat16 (autocast); weights, optimiser and losses stay in
    float32. fp32: as released."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, used for evaluation; 0: none."""
    shuffle_rows: int = 1024
    """Rows in the shuffle buffer of the loader."""
    report_every: int = 50
    """Steps between two reports of the losses."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints (one is always written at the end)."""
    seed: int = 0
    """Seeds weights, data order and augmentation."""

    def __post_init__(self) -> None:
        positive(self, "pairs_per_batch", "steps", "learning_rate", "clip_norm")
        positive(self, "report_every", "checkpoint_every", "shuffle_rows")
        unit(self, "backbone_rate", "final_rate", "ema_decay")


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig:
    """From network outputs to stored detections of a frame (specification 4.2)."""

    score_floor: float = 0.1
    """Detections at or below this score are not stored, except the best one of a frame. A sweep
    can ask for any score_threshold from here upwards. The released code selects at 0.1."""
    box_nms: float = 0.9
    """IoU above which class-aware box NMS removes the lower-scored detection."""
    mask_resize: Literal["released", "smooth"] = "released"
    """From logits at 1/4 of the input to the original size. released: bilinear to the input's
    size, threshold, then nearest. smooth: bilinear to the original size, then threshold, which
    leaves no staircase where frames are larger than the input."""
    max_detections: int = 100
    """At most this many per frame are stored, best first."""
    batch_frames: int = 8
    """Frames in one forward pass."""
    speed: Speed = "exact"
    """exact: in the precision of the weights, as released. fast: in 16 bits where the device has
    units for them, on a GPU also as graphs and with masks made there; for its price in accuracy
    see docs/performance.md."""
    frames_per_shard: int = 64
    """Frames of one shard: short videos together, or a part of a long one. What is lost at most
    when a worker dies, and what is dealt out to the workers."""
    reject_limit: float = 0.5
    """Share of the videos that may be unreadable before the whole job fails."""

    def __post_init__(self) -> None:
        unit(self, "score_floor", "box_nms", "reject_limit")
        positive(self, "max_detections", "batch_frames", "frames_per_shard")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysisConfig:
    """Oracle experiments, clip matching, error shares and intervals of `jobs.score`."""

    identity_iou: float = 0.5
    """Mask IoU from which a prediction is taken to show a true instance and gets its identity."""
    background_iou: float = 0.1
    """Spatio-temporal IoU below which a track is background and no poor find (TIDE's t_b)."""
    clip_match_iou: float = 0.1
    """Soft mask IoU of two overlapping clips' tracks from which they are joined."""
    resamples: int = 1000
    """Draws of the videos, with replacement, behind a confidence interval; 0: no interval."""
    confidence: float = 0.95
    """Share of the draws that an interval covers."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        unit(self, "identity_iou", "background_iou", "clip_match_iou", "confidence")
        require(self.identity_iou > 0, "identity_iou must be > 0: an overlap of 0 shows nothing")
        require(self.clip_match_iou > 0, "clip_match_iou must be > 0, or strangers are joined")
        require(
            self.background_iou < 0.5,
            f"background_iou must be below 0.5, got {self.background_iou}: from there on a track "
            "can count as found",
        )
        require(0 < self.confidence < 1, f"confidence must be < 1 and > 0, got {self.confidence}")
        require(self.resamples >= 0, f"resamples must be >= 0, got {self.resamples}")
        require(self.seed >= 0, f"seed must be >= 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run. Presets (idol/presets.py) are functions that return one."""

    name: str = "custom"
    """The preset it came from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    transforms: TransformConfig = field(default_factory=TransformConfig)
    """Sizes and augmentation."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """Key/reference pairs."""
    assignment: AssignmentConfig = field(default_factory=AssignmentConfig)
    """Which query answers for which truth."""
    losses: LossConfig = field(default_factory=LossConfig)
    """Loss weights."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    detect: DetectConfig = field(default_factory=DetectConfig)
    """Per-frame selection."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """Association."""
    categories: tuple[str, ...] = ()
    """Category names by label; filled from the dataset when training."""
    category_ids: tuple[int, ...] = ()
    """The dataset's category_id of each label; filled from the dataset when training."""

    def __post_init__(self) -> None:
        named = len(self.categories)
        require(
            named == len(self.category_ids) and named in (0, self.model.num_classes),
            "categories and category_ids must name every class of the model or be empty, got "
            f"{named} and {len(self.category_ids)} for num_classes={self.model.num_classes}",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of to_dict: rebuild a configuration, refusing unknown fields and wrong types.

    Errors: ValueError naming the field, what came, and the nearest known name.
    """
    built: T = _build(cls, values, path="")
    return built


def override(config: T, assignments: Iterable[str]) -> T:
    """Replace fields by "section.field=value" strings; values are JSON, or bare words.

    Example: override(config, ["tracker.match_threshold=0.6", "train.steps=1000"]).
    Errors: ValueError for an unknown field (with the nearest known name) or a bad value.
    """
    plain = to_dict(config)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(
                f"an override is section.field=value, got {assignment!r}. "
                "Example: tracker.match_threshold=0.6"
            )
        node: dict[str, Any] = plain
        cls: Any = type(config)
        parts = key.strip().split(".")
        for part in parts[:-1]:
            _known(cls, part, assignment)
            cls = _unwrap(typing.get_type_hints(cls)[part])
            if not dataclasses.is_dataclass(cls):
                raise ValueError(f"{part!r} in {assignment!r} is a value, not a section")
            node = node[part]
        _known(cls, parts[-1], assignment)
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = {"True": True, "False": False, "None": None}.get(text.strip(), text.strip())
        node[parts[-1]] = value
    return from_dict(type(config), plain)


def _known(cls: Any, name: str, context: str) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(names)}."
        raise ValueError(f"{cls.__name__} has no field {name!r} ({context}). {hint}")


def _unwrap(hint: Any) -> Any:
    """X of Optional[X]; the hint itself otherwise."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _build(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{path or cls.__name__} must be a mapping of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    built: dict[str, Any] = {}
    for name, value in values.items():
        _known(cls, name, f"{path}{name}=...")
        built[name] = _convert(hints[name], value, f"{path}{name}")
    return cls(**built)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _convert(_unwrap(hint), value, path)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{path} must be one of {typing.get_args(hint)}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{path}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path} must be a list, got {value!r}")
        kinds = typing.get_args(hint)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{path} must have {len(kinds)} entries, got {value!r}")
        return tuple(_convert(k, v, path) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{path} must be {hint.__name__}, got {value!r}")
    return value
