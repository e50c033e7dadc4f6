"""The numbers of online association, each a named option (paper Sec. 3.3, released code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idol.config.checks import not_negative, positive, require, unit, within
from idol.config.effects import Above, beside


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerConfig:
    """Online association, paper Sec. 3.3. All fields can be swept without a GPU."""

    weighting: Literal["paper", "released", "momentum", "last", "similarity_guided"] = "released"
    """Memory embedding of an instance. paper, Eq. 5: weights τ + T/t, t = 1 for the most recent.
    released: weights score + rank/L over its last L <= memory_length matched frames.
    momentum: moving average, the baseline of the paper's ablation. last: the newest embedding
    only. similarity_guided (CTVIS, ICCV 2023): moving average in which the newest embedding has
    the weight max(0, its mean cosine with the last memory_length ones), so that an occluded view,
    which is unlike them, changes little."""
    temporal_weight: bool = beside(True, weighting=("paper", "released"))
    """False drops the recency term: released weights are the scores, paper weights are equal."""
    momentum: float = beside(0.8, weighting=("momentum",))
    """Share of the newest embedding in the moving average (weighting momentum)."""
    frame_weight: bool = beside(True, similarity=("released",))
    """Similarity released: if several memories pass, multiply by the existence time."""
    tau: float = beside(0.5, weighting=("paper",), temporal_weight=(True,))
    """τ of Eq. 5: weight floor of old embeddings; a larger value means a longer memory."""
    memory_length: int = beside(3, weighting=("paper", "released", "similarity_guided"))
    """T of Eq. 5: embeddings remembered per instance."""
    similarity: Literal["paper", "released", "cosine", "multi_cue"] = "released"
    """f(i, j). paper, Eq. 6: σ_j, the existence time, added inside the softmax over memory.
    released: bi-softmax, see frame_weight. cosine: of detection and memory embedding.
    multi_cue (MaskTrack R-CNN, ICCV 2019): log p + cue_score · log(score) + cue_overlap · IoU of
    the detection's and the last box + cue_class if the classes agree, where p is the softmax of
    the products with the memory embeddings and with "new", whose product is 0. An instance
    matches if its value exceeds that of "new" (of equal class); match_threshold is not used."""
    cue_score: float = beside(1.0, similarity=("multi_cue",))
    """α of multi_cue. It is the same for all instances, so it only decides conflicts."""
    cue_overlap: float = beside(2.0, similarity=("multi_cue",))
    """β of multi_cue."""
    cue_class: float = beside(10.0, similarity=("multi_cue",))
    """γ of multi_cue."""
    position_weight: float = 0.0
    """Ours: add this times exp(-d) / (frames since the instance was seen) to the similarity; d is
    the distance from its expected box (last box plus last motion) in units of the boxes' mean
    side. Tells look-alikes apart. 0: off."""
    size_weight: float = beside(0.0, position_weight=Above(0))
    """Ours: add this times |log(ratio of the sides)| to the distance d of position_weight."""
    newest_too: bool = beside(False, similarity=("cosine",))
    """Ours, for cosine: the larger cosine of the newest embedding and the memory's. Beside a slow
    moving average, one bad embedding does no lasting harm."""
    softmax_weight: float = 0.0
    """Ours, for cosine: add this times the released bi-softmax to the similarity; 0: off."""
    class_weight: float = 0.0
    """Ours: subtract this times 1 - the cosine of the detection's class scores with the instance's
    mean ones; 0: off."""
    assignment: Literal["greedy", "argmax", "hungarian"] = "greedy"
    """greedy: in descending detection score, every instance once (released). argmax: each
    detection's best instance; in a conflict the most similar detection gets it (Eq. 7).
    hungarian: the largest sum of similarities over all pairs above the threshold."""
    match_threshold: float = beside(0.5, similarity=("paper", "released", "cosine"))
    """f(i, j) above which detection i continues instance j (Eq. 7)."""
    min_cosine: float = -1.0
    """A pair with a lower cosine of detection and memory embedding never matches; -1: off."""
    same_class: bool = False
    """Match only if the detection's label equals the instance's last one."""
    score_threshold: float = 0.1
    """Detections at or below this are not considered (released: INFERENCE_SELECT_THRES)."""
    keep_best: bool = True
    """If no detection passes score_threshold, consider the best one (released)."""
    new_threshold: float = 0.2
    """An unmatched detection above this score starts a new identity."""
    first_threshold: float = 0.2
    """The same while the memory is empty."""
    new_overlap: float = 1.0
    """Ours: an unmatched detection starts no identity if its mask IoU with one that has an identity
    exceeds this; 1: off."""
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
    prune_after: int = beside(8, prune_short=Above(1))
    """Frame index after which pruning starts (released: 8)."""
    prune_at_end: bool = beside(False, prune_short=Above(1))
    """Prune once more when the video ends (released: no)."""
    plugin: str = ""
    """package.module:Class, another tracker (idol/tracker/plugin.py). For it score_threshold,
    keep_best, multi_class, class_score_threshold and prune_* hold, and what it reads itself. Empty:
    ours."""

    def __post_init__(self) -> None:
        unit(self, "score_threshold", "new_threshold", "first_threshold", "mask_nms", "new_overlap")
        unit(self, "class_score_threshold", "momentum")
        within(self, -1, 1, "match_threshold", "min_cosine")
        not_negative(self, "tau", "position_weight", "size_weight", "softmax_weight")
        not_negative(self, "class_weight", "cue_score", "cue_overlap", "cue_class", "prune_short")
        positive(self, "memory_length", "memory_lifetime")
        fits = self.similarity == "cosine" or not self.newest_too
        named = not self.plugin or all(self.plugin.partition(":")[::2])
        require(named, f"plugin is package.module:Class, got {self.plugin!r}")
        require(fits, f"newest_too goes with similarity cosine, got {self.similarity}")

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
        """MaskTrack R-CNN's association, the paper's baseline: embedding, score, box and class of
        each instance's last detection. Unlike the original it forgets after memory_lifetime."""
        return cls(weighting="last", similarity="multi_cue", assignment="argmax")

    @classmethod
    def robust(cls) -> TrackerConfig:
        """Ours: the cosine with the newest embedding or a slow average, plus expected place and
        size, assigned jointly. Duplicates start no identity; the memory is longer."""
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
            new_overlap=0.1,
            mask_nms=0.35,
            prune_after=4,
            prune_at_end=True,
        )
