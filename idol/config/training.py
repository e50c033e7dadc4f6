"""The numbers of training: pairs, augmentation, assignment, losses, optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idol.config.checks import at_most, not_negative, positive, require, unit, within
from idol.config.effects import Above, beside

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
"""Alpha and gamma of the focal class cost, and the defaults of the focal losses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformConfig:
    """From decoded frames to network inputs (specification 4.1, 5.2)."""

    train_short_sides: tuple[int, ...] = beside(
        (320, 352, 392, 416, 448, 480, 512, 544, 576, 608, 640), stretch=(None,)
    )
    """The shorter side of both frames of a training pair is drawn from these, in pixels."""
    train_max_side: int = beside(768, stretch=(None,))
    """Longest side allowed while training."""
    test_short_side: int = beside(480, stretch=(None,))
    """Shorter side at inference."""
    test_max_side: int = beside(1333, stretch=(None,))
    """Longest side allowed at inference."""
    stretch: tuple[int, int] | None = None
    """(height, width) of every resized frame, in training and inference. None: keep the aspect
    ratio, as released."""
    flip_probability: float = 0.5
    """Horizontal flip, the same for both frames."""
    crop_probability: float = 0.5
    """Chance of a random crop before resizing."""
    crop_range: tuple[int, int] = beside((384, 600), crop_probability=Above(0))
    """Smallest and largest crop side in original pixels."""
    shared_crop: bool = beside(False, crop_probability=Above(0))
    """Use one crop window for both frames; released: independent windows."""
    independent: bool = False
    """Draw flip, size and crop separately for key and reference (for pairs.pseudo)."""
    crop_short_sides: tuple[int, ...] = beside((), crop_probability=Above(0))
    """Before a crop, resize the shorter side to one of these; empty: keep the original size."""
    pixels: Literal["rgb", "bgr"] = "rgb"
    """What the network sees. rgb: normalised by ImageNet's mean and deviation, as released. bgr:
    blue first, only the mean taken off, as backbones of MSRA (IFC's ResNet-101) were trained."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast, saturation jitter, one draw for a pair (released: 0)."""
    scale_jitter: float = 0.0
    """With stretch: random crop of up to this fraction of each side, one window for the pair."""
    size_divisor: int = 32
    """Padded sides are multiples of this."""

    def __post_init__(self) -> None:
        unit(self, "flip_probability", "crop_probability", "color_jitter", "scale_jitter")
        positive(self, "train_max_side", "test_short_side", "test_max_side", "size_divisor")
        at_most(self, 16_384, "train_max_side", "test_short_side", "test_max_side", "stretch")
        at_most(self, 16_384, "train_short_sides", "crop_short_sides", "crop_range")
        at_most(self, 1024, "size_divisor")
        for name in ("train_short_sides", "crop_short_sides", "stretch"):
            sides = getattr(self, name) or ()
            require(all(side > 0 for side in sides), f"{name} must be positive, got {sides}")
        require(len(self.train_short_sides) > 0, "train_short_sides must not be empty")
        low, high = self.crop_range
        require(0 < low <= high, f"crop_range must be (smallest, largest), got {(low, high)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairConfig:
    """How key and reference frames are paired (paper Sec. 3.2, specification 5.2)."""

    sampling: Literal["released", "stored"] = "released"
    """released: every video counts alike, and each visit draws a frame of it and a partner of that
    frame; frames are stored once, and training reads those that it draws. stored: pairs are drawn
    once, for every frame one, and stored as they are; every frame counts alike, and training reads
    in sequence what takes twice the space."""
    clip: int = beside(2, sampling=("released",))
    """Frames of a training sample. 2: a pair. More, for networks of clips: the frame, and the
    others drawn one by one from its neighbourhood, so that frames may come twice."""
    distinct: bool = beside(False, sampling=("released",))
    """A clip has no frame twice, where so many are within max_gap."""
    max_gap: int = 10
    """Largest distance in frames between the frame that is drawn and its partners."""
    pairs_per_video: int = beside(0, sampling=("stored",))
    """Rows per video; 0: one row per frame of the video."""
    order: Literal["released", "any"] = "released"
    """released: in order of time, the earliest frame is the key; any: as drawn (the paper's
    text)."""
    pseudo: bool = False
    """Pair every annotated frame with itself, for pre-training on still images (specification
    5.3); transforms.independent then makes key and reference differ. Boxes are the annotated ones,
    with sampling "stored" those of the masks."""
    max_side: int = 0
    """Resize stored frames so that the longer side is at most this; 0: keep the bytes."""
    seed: int = 0
    """Seeds which videos a shard holds; with sampling "stored" also the choice of pairs."""
    rows_per_shard: int = 512
    """Pairs or frames per shard, at most."""
    jpeg_quality: int = 95
    """Quality of frames that have to be encoded: resized ones, PNG files, frames of video files."""

    def __post_init__(self) -> None:
        positive(self, "max_gap", "rows_per_shard")
        not_negative(self, "pairs_per_video", "max_side")
        at_most(self, 100_000, "pairs_per_video", "rows_per_shard")
        within(self, 0, 100, "jpeg_quality")
        within(self, 2, 1000, "clip")
        require(
            self.clip == 2 or self.sampling == "released",
            f'clips of {self.clip} frames are drawn at each visit: they need sampling "released", '
            f"got {self.sampling!r}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignmentConfig:
    """Optimal-transport assignment and positive/negative selection (specification 3.1, 3.2)."""

    cost: Literal["released", "exact", "paper"] = "released"
    """Cost of a query for a truth. released: focal class cost - giou_weight · GIoU, + 100 unless
    the query's centre lies in the truth's box and in the square around its centre, + 10000 if it
    lies in neither of any truth; summed in float32, where costs of far queries are rounded to
    1e-3. exact: the same in float64, without that rounding. paper, Sec. 3.1: focal class cost, L1
    distance and -GIoU with paper_weights, no centre prior."""
    paper_weights: tuple[float, float, float] = beside((2.0, 5.0, 2.0), cost=("paper",))
    """Weights of class cost, L1 distance and -GIoU with cost "paper". The paper gives none; these
    are SET_COST_CLASS, _BOX and _GIOU of the released files, which the released code ignores."""
    giou_weight: float = beside(3.0, cost=("released", "exact"))
    """Weight of -GIoU with costs "released" and "exact"; the focal class cost has weight 1."""
    center_radius: float = beside(2.5 / 32, cost=("released", "exact"))
    """Half side of the centre prior's square, in normalised coordinates."""
    candidates: int = 10
    """A truth gets as many queries as the sum of this many largest IoUs (its dynamic k)."""
    negative_candidates: int = beside(100, selection=("optimal_transport",))
    """The same for the set whose complement gives the negatives of the contrastive loss."""
    repair: Literal["released", "exact"] = "released"
    """How a truth that lost all its queries to others gets one. released: it takes its cheapest
    free query; of truths that take the same query only the first is trained with it. exact: free
    queries are assigned one to one at the least total cost."""
    selection: Literal["optimal_transport", "iou"] = "optimal_transport"
    """Positives and negatives of the contrastive loss. optimal_transport: the paper's method. iou:
    the baseline of its ablation (Tables 6, 7; A.2), by the IoU of box and truth only."""
    positives: Literal["released", "paper"] = beside("released", selection=("optimal_transport",))
    """With optimal_transport. released: an assignment, so a query has one truth only (Sec. 3.1).
    paper, A.2: each truth's m1 queries of lowest cost; truths may share queries."""
    negatives: Literal["released", "paper"] = beside("released", selection=("optimal_transport",))
    """With optimal_transport. released: the queries outside an assignment with
    negative_candidates. paper, A.2: each truth's Q - m2 queries of highest cost."""
    iou_positive: float = beside(0.7, selection=("iou",))
    """With selection "iou": queries whose box has a larger IoU with the truth are positives."""
    iou_negative: float = beside(0.3, selection=("iou",))
    """With selection "iou": queries with a smaller IoU are negatives."""

    def __post_init__(self) -> None:
        positive(self, "center_radius", "candidates", "negative_candidates")
        unit(self, "iou_positive", "iou_negative")
        require(
            self.iou_negative <= self.iou_positive,
            "iou_negative must not exceed iou_positive, or a query would be both: got "
            f"{self.iou_negative} and {self.iou_positive}",
        )
        weights = self.paper_weights
        usable = min(weights) >= 0 and max(weights) > 0
        require(usable, f"paper_weights must be >= 0 and not all 0, got {weights}")

    @classmethod
    def paper(cls) -> AssignmentConfig:
        """Sec. 3.1 and Appendix A.2 as written; every truth keeps a query of its own."""
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
    contrast: Literal["reference", "memory"] = "reference"
    """What an embedding is contrasted with. reference: the queries of the reference frame (paper
    Eq. 4). memory: what a memory holds after the earlier frames of a clip, as it will be at
    inference (consistent training, Ying et al. 2023); needs pairs.clip of 3 or more, and supervises
    every frame."""
    memory_noise: float = beside(0.0, contrast=("memory",))
    """Probability with which another query enters an instance's memory in a frame where it is not
    visible, so that training meets what errors of tracking do."""
    identity: float = 0.0
    """Cross-entropy of the "ID head" (ablation, Tables 6 and 7), which classifies the embeddings of
    both frames' matched queries by instance of the training set. 0: no head."""
    dense: float = beside(2.0, **{"model.dense_auxiliary": (True,)})
    """Dense auxiliary classification of encoder tokens; counts only with dense_auxiliary."""
    no_object: float = beside(0.1, **{"model.method": ("ifc",)})
    """IFC: weight of the class "no object" in the cross-entropy, others having 1."""
    focal_alpha: float = FOCAL_ALPHA
    """Alpha of every focal loss."""
    focal_gamma: float = FOCAL_GAMMA
    """Gamma of every focal loss."""
    negatives_per_positive: int = beside(10, reid_aux=Above(0))
    """Negatives sampled per positive in the auxiliary embedding loss."""
    supervise_reference: bool = beside(False, contrast=("reference",))
    """Detection and mask losses on the reference frame too (released: key frame only)."""
    normaliser: Literal["local", "global"] = "local"
    """What losses are means over (matched queries, truths, tokens). local, as released: those of
    one worker's micro-batch, so that the gradient depends on how a batch is cut. global: those of
    the whole batch, all of it padded to one size: the gradient is the same for any number of
    workers and any train.micro_batch, which then costs a second forward pass."""

    def __post_init__(self) -> None:
        unit(self, "focal_alpha", "memory_noise")
        not_negative(self, "ce", "bbox", "giou", "mask", "dice", "reid", "reid_aux")
        not_negative(self, "identity", "dense", "no_object")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Optimisation (specification 6)."""

    pairs_per_batch: int = 32
    """Key/reference pairs of one optimiser step, over all workers together."""
    micro_batch: int = 0
    """Pairs that a worker takes in one forward and backward pass; the gradients of several add up,
    so that any number of workers and any GPU trains with pairs_per_batch. 0: all of its pairs, at
    most pairs_per_batch. With losses.normaliser "local" a micro-batch counts like the batch of one
    of so many more workers."""
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
    milestones: tuple[int, ...] = beside((8000,), schedule=("step",))
    """Steps at which the rate drops (schedule step)."""
    warmup_steps: int = 0
    """Linear warm-up."""
    final_rate: float = beside(0.02, schedule=("cosine",))
    """Last learning rate as a fraction of the peak (schedule cosine)."""
    clip_norm: float = 0.01
    """Clip of the whole model's gradient norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the network's products in bfloat16 (autocast). fp32: as released."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, used for evaluation; 0: none."""
    shuffle_rows: int = beside(1024, **{"pairs.sampling": ("stored",)})
    """Pairs in the shuffle buffer of the loader."""
    group_pairs: int = beside(4, **{"pairs.sampling": ("released",)})
    """So many pairs of a batch are all wide or all upright, as in the batch of each of the 8 GPUs
    of the released runs; 1: as they come."""
    report_every: int = 50
    """Steps between two reports of the losses."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints (one is always written at the end, and at a validation)."""
    keep_checkpoints: int = 1
    """Newest checkpoints to keep."""
    seed: int = 0
    """Seeds weights, data order and augmentation."""

    def __post_init__(self) -> None:
        positive(self, "pairs_per_batch", "steps", "learning_rate", "clip_norm")
        positive(self, "report_every", "checkpoint_every", "keep_checkpoints")
        positive(self, "shuffle_rows", "group_pairs")
        not_negative(self, "weight_decay", "warmup_steps")
        at_most(self, 100_000, "pairs_per_batch", "shuffle_rows")
        within(self, 0, self.pairs_per_batch, "micro_batch")
        unit(self, "backbone_rate", "final_rate", "ema_decay")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Detection, tracking and scoring of labelled videos while training; without effect where
    none are given."""

    every: int = 1000
    """Steps between two validations (the last step is always validated)."""
    videos: int = 0
    """So many of the videos, spread evenly over them; 0: all."""
    metric: Literal["AP", "AP50", "HOTA"] = "AP"
    """What the best weights are chosen by."""
    patience: int = 0
    """End training when so many validations in a row were no better than the best before them; 0:
    never."""
    pictures: int = 2
    """Videos of which three frames are drawn at each validation."""

    def __post_init__(self) -> None:
        positive(self, "every")
        not_negative(self, "videos", "patience", "pictures")
        at_most(self, 100, "pictures")
