"""The numbers of online association, each a named option (paper Sec. 3.3, released code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idol.config.checks import positive, require, unit


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerConfig:
    """Online association, paper Sec. 3.3. All fields can be swept without a GPU."""

    weighting: Literal["paper", "released", "momentum", "last", "similarity_guided"] = "released"
    """Memory embedding of an instance. paper, Eq. 5: weights τ + T/t with t = 1 the most recent.
    released: weights score + rank/L over its last L <= memory_length matched frames.
    momentum: moving average, the baseline of the paper's ablation. last: the newest embedding
    alone. similarity_guided (CTVIS, ICCV 2023): moving average in which the newest weighs
    max(0, its mean cosine with the last memory_length embeddings), so that an embedding unlike
    them, as under occlusion, changes little."""
    temporal_weight: bool = True
    """False drops the recency term: released weighs by score alone, paper evenly."""
    momentum: float = 0.8
    """Share of the newest embedding in the moving average (weighting momentum)."""
    frame_weight: bool = True
    """Similarity released: among several passing memories the longest-lived weighs more."""
    tau: float = 0.5
    """τ of Eq. 5: weight floor of old embeddings; larger means a longer memory."""
    memory_length: int = 3
    """T of Eq. 5: embeddings remembered per instance."""
    similarity: Literal["paper", "released", "cosine", "multi_cue"] = "released"
    """f(i, j). paper, Eq. 6: σ_j, the existence time, added inside the softmax over memory.
    released: plain bi-softmax; existence time multiplies candidates when several pass.
    cosine: cosine of detection and memory embedding. multi_cue (MaskTrack R-CNN, ICCV 2019):
    log p + cue_score · log(score) + cue_overlap · IoU of detection and last box + cue_class where
    the classes agree; p is the softmax of the products with the memory embeddings and with "new",
    whose product is 0. It matches where an instance exceeds "new", which counts as of the same
    class, and knows no match_threshold."""
    cue_score: float = 1.0
    """α of multi_cue. The score is the same for all instances: it settles conflicts."""
    cue_overlap: float = 2.0
    """β of multi_cue."""
    cue_class: float = 10.0
    """γ of multi_cue."""
    position_weight: float = 0.0
    """Ours: add this times exp(-d) to the similarity, d the distance from where the instance is
    expected (its last box, moved on by its last motion) in units of the boxes' mean side, divided
    by the frames since it was seen; 0: off. Among look-alikes the place tells them apart."""
    size_weight: float = 0.0
    """Ours: add this times |log(ratio of the sides)| to the distance d of position_weight: a part
    of an instance, or what hides it, has its place but not its size."""
    newest_too: bool = False
    """Ours, for cosine: compare with the newest embedding as well as with the memory's, and take
    the larger. With a slow moving average an instance is then known both as it was all along and
    as it was a moment ago, and one bad embedding spoils neither for long."""
    softmax_weight: float = 0.0
    """Ours: add this times the released bi-softmax to the similarity (for cosine), so that an
    instance that only one detection is like counts more than one that several are; 0: off."""
    class_weight: float = 0.0
    """Ours: subtract this times 1 - c, c the cosine of the detection's class scores with the mean
    ones of the instance: a gate that a wavering class does not shut; 0: off."""
    assignment: Literal["greedy", "argmax", "hungarian"] = "greedy"
    """greedy: in descending detection score, a memory column used once (released); argmax: each
    detection's best memory, the most similar detection winning a conflict (Eq. 7); hungarian: the
    largest sum of similarities over all pairs that pass the threshold."""
    match_threshold: float = 0.5
    """f(i, j) above which detection i continues instance j (Eq. 7)."""
    min_cosine: float = -1.0
    """Detections less alike than this (cosine with the memory embedding) never match; -1: off."""
    same_class: bool = False
    """Only match detections whose label equals the label last seen of the instance."""
    score_threshold: float = 0.1
    """Detections at or below this are not considered (released: INFERENCE_SELECT_THRES)."""
    keep_best: bool = True
    """Where no detection passes score_threshold, consider the best one (released)."""
    new_threshold: float = 0.2
    """An unmatched detection above this score starts a new identity."""
    first_threshold: float = 0.2
    """The same while the memory is empty."""
    new_overlap: float = 1.0
    """Ours: an unmatched detection whose mask IoU with one that has an identity exceeds this is its
    duplicate, and starts none; 1: off."""
    mask_nms: float = 0.5
    """Mask IoU above which the lower-scored detection is removed, regardless of class."""
    memory_lifetime: int = 10
    """An instance not seen for this many frames is forgotten."""
    class_score_threshold: float = 0.05
    """A track is submitted once for every class whose mean score exceeds this."""
    multi_class: bool = True
    """Submit a track under every class that passes; otherwise under its best class only."""
    prune_short: int = 3
    """Tracks seen in fewer frames than this and absent for two frames are dropped."""
    prune_after: int = 8
    """Frame index after which pruning starts (released: 8)."""
    prune_at_end: bool = False
    """Prune once more when the video ends (released: no)."""

    def __post_init__(self) -> None:
        unit(self, "score_threshold", "new_threshold", "first_threshold", "mask_nms", "new_overlap")
        unit(self, "class_score_threshold", "momentum")
        require(
            -1.0 <= self.match_threshold <= 1.0,
            f"match_threshold must lie in [-1, 1], got {self.match_threshold}",
        )
        require(-1.0 <= self.min_cosine <= 1.0, f"min_cosine in [-1, 1], got {self.min_cosine}")
        require(self.tau >= 0, f"tau must be >= 0, got {self.tau}")
        for name in (
            "position_weight",
            "size_weight",
            "softmax_weight",
            "class_weight",
            "cue_score",
            "cue_overlap",
            "cue_class",
        ):
            require(getattr(self, name) >= 0, f"{name} must be >= 0, got {getattr(self, name)}")
        positive(self, "memory_length", "memory_lifetime")
        require(
            self.similarity == "cosine" or not self.newest_too,
            f"newest_too goes with similarity cosine, got {self.similarity}",
        )
        require(self.prune_short >= 0, f"prune_short must be >= 0, got {self.prune_short}")

    @classmethod
    def released(cls, dataset: Literal["ytvis", "ovis"] = "ytvis") -> TrackerConfig:
        """The released code's tracker with the settings of its YouTube-VIS or OVIS files."""
        if dataset == "ytvis":
            return cls()
        if dataset == "ovis":
            return cls(mask_nms=0.3, new_threshold=0.3)
        raise ValueError(f"TrackerConfig.released knows 'ytvis' and 'ovis', got {dataset!r}")

    @classmethod
    def paper(cls) -> TrackerConfig:
        """The equations of the paper as written (Eq. 5, 6, 7)."""
        return cls(weighting="paper", similarity="paper", assignment="argmax")

    @classmethod
    def multi_cue(cls) -> TrackerConfig:
        """MaskTrack R-CNN's association, the baseline that the paper compares with: appearance,
        score, place and class of each instance's last detection. It forgets after memory_lifetime
        frames like the others; the original never does."""
        return cls(weighting="last", similarity="multi_cue", assignment="argmax")

    @classmethod
    def robust(cls) -> TrackerConfig:
        """Ours: absolute likeness to the newest embedding or a slow average of all, and the place
        and size that are expected, assigned together, instead of softmax scores that are relative
        to whatever else is in the frame; duplicates start no identity; a longer memory."""
        return cls(
            weighting="momentum",
            momentum=0.3,
            similarity="cosine",
            newest_too=True,
            position_weight=1.0,
            size_weight=0.5,
            assignment="hungarian",
            match_threshold=0.55,
            memory_lifetime=30,
            keep_best=False,
            new_threshold=0.3,
            first_threshold=0.3,
            new_overlap=0.1,
            mask_nms=0.35,
            prune_after=4,
            prune_at_end=True,
        )
