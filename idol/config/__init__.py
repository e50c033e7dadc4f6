"""Every number of the method: a typed, documented and checked field with its only default."""

from __future__ import annotations

from dataclasses import dataclass, field

from idol.config.checks import require
from idol.config.effects import without_effect
from idol.config.inference import AnalysisConfig, ClipConfig, DetectConfig, Speed
from idol.config.network import BackboneConfig, ModelConfig
from idol.config.text import from_dict, override, to_dict
from idol.config.tracker import TrackerConfig
from idol.config.training import (
    AssignmentConfig,
    LossConfig,
    PairConfig,
    TrainConfig,
    TransformConfig,
    ValidationConfig,
)

__all__ = [
    "AnalysisConfig",
    "AssignmentConfig",
    "BackboneConfig",
    "ClipConfig",
    "Config",
    "DetectConfig",
    "LossConfig",
    "ModelConfig",
    "PairConfig",
    "Speed",
    "TrackerConfig",
    "TrainConfig",
    "TransformConfig",
    "ValidationConfig",
    "from_dict",
    "override",
    "to_dict",
    "without_effect",
]


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
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Scores while training."""
    detect: DetectConfig = field(default_factory=DetectConfig)
    """Per-frame selection."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """Association."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    """Inference of networks of clips; without effect on IDOL."""
    categories: tuple[str, ...] = ()
    """Category names by label; filled from the dataset when training."""
    category_ids: tuple[int, ...] = ()
    """The dataset's category_id of each label; filled from the dataset when training."""

    def __post_init__(self) -> None:
        require(
            self.transforms.pixels == "rgb" or self.model.method != "idol",
            "transforms.pixels 'bgr' is for networks of clips, got model.method='idol'",
        )
        named = len(self.categories)
        require(
            named == len(self.category_ids) and named in (0, self.model.num_classes),
            "categories and category_ids must name every class of the model or be empty, got "
            f"{named} and {len(self.category_ids)} for num_classes={self.model.num_classes}",
        )
