"""Fields of lesion detection: the detector, its recipe and its arms."""

import dataclasses
from collections.abc import Mapping

from lt_jax.config.data import AugmentConfig
from lt_jax.config.fields import FrozenDict, bounded, choice
from lt_jax.config.networks import OptimizerConfig, ResNetConfig, ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A trunk, a pyramid of feature maps over it, and one head for all of its levels."""

    trunk: str = choice("resnet", "vit")
    # Stage 0 is at half the finest stride, the others at the pyramid's, as far as it goes; the stem
    # is convolutions of 3x3 down to there, whatever resnet.stem says.
    resnet: ResNetConfig = ResNetConfig(channels=(16, 32, 64, 64), blocks=(1, 1, 1, 1))
    vit: ViTConfig = ViTConfig()
    width: int = bounded(64, 4, 4096)  # channels of the pyramid and of the head
    head_blocks: int = bounded(2, 0, 8)  # 3x3 convolutions before each of the head's two parts
    finest: int = bounded(0, 0, 64)  # stride of the finest level, in pixels; 0: by the image's size
    levels: int = bounded(0, 0, 8)  # each of twice the stride; 0: until 2 x 2 locations, at most 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssignConfig:
    """Which locations of the pyramid are to find a lesion, and what they are taught."""

    radius: float = bounded(1.5, 0.1, 100.0)  # about a lesion's middle, in strides
    reach: float = bounded(2.0, 0.1, 100.0)  # farthest side that a level regresses, in strides
    focal_alpha: float = bounded(0.25, 0.0, 1.0)
    focal_gamma: float = bounded(2.0, 0.0, 10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How the head's output becomes boxes."""

    candidates: int = bounded(100, 1, 10_000)  # best locations of an image that go into NMS
    most: int = bounded(20, 1, 1000)  # detections of an image that are kept
    score: float = bounded(0.1, 0.0, 1.0)  # below it, none
    overlap: float = bounded(0.6, 0.0, 1.0)  # IoU above which the lower score goes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectArmConfig:
    """Which images a detector is trained on."""

    data: str = choice("real", "synthetic", "mixed")
    mix: str = choice("share", "fill_to_head")  # of `mixed`
    share: float = bounded(0.5, 0.0, 0.999)  # of `share`: synthetic draws of a class


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """The recipe that all arms of detection share, and the arms; without arms, no detection."""

    classes: str = choice("lesion", "label")  # what is told apart: nothing, or the images' classes
    model: DetectorConfig = DetectorConfig()
    assign: AssignConfig = AssignConfig()
    decode: DecodeConfig = DecodeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    steps: int = bounded(400, 1)
    batch_size: int = bounded(64, 1)
    looks: int = bounded(4, 1, 1000)  # times that average precision on val is measured
    seeds: tuple[int, ...] = bounded((0, 1, 2), 0)
    small: float = bounded(0.3, 0.01, 1.0)  # part of the train lesions that counts as small
    baseline: str = "real"  # the arm that others are compared with
    arms: Mapping[str, DetectArmConfig] = dataclasses.field(default_factory=lambda: FrozenDict({}))
