"""Fields of the generator: process, conditions, sketch branch, adaptation."""

import dataclasses

from lt_jax.config.data import AugmentConfig
from lt_jax.config.fields import bounded, choice
from lt_jax.config.networks import OptimizerConfig, UNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Variance-preserving diffusion in continuous time."""

    schedule: str = choice("cosine", "linear")
    beta_min: float = bounded(0.1, 0.0, 100.0)  # linear schedule: beta(0)
    beta_max: float = bounded(20.0, 0.0, 1000.0)  # linear schedule: beta(1)
    prediction: str = choice("v", "eps", "x0")
    min_snr_gamma: float = bounded(5.0, 0.0, 1e6)  # 0 leaves the eps-weighted loss as it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionsConfig:
    """What the generator is told besides the class, and how often each is left out in training."""

    boxes: str = choice("none", "channel", "channel_and_corners")  # corners: Fourier features
    max_boxes: int = bounded(4, 1, 64)  # boxes of an image that are seen; the largest come first
    device: str = ""  # a categorical column, embedded: "device" or an attribute's name
    attributes: tuple[str, ...] = ()  # numeric columns, standardised by the train split
    mask: bool = False
    sketch: bool = False
    inpaint: bool = False  # masked image and mask as input
    augmentation: bool = False  # the geometry of the augmentation as a condition (non-leaking)
    label_dropout: float = bounded(0.0, 0.0, 1.0)
    boxes_dropout: float = bounded(0.1, 0.0, 1.0)
    device_dropout: float = bounded(0.1, 0.0, 1.0)
    attributes_dropout: float = bounded(0.1, 0.0, 1.0)
    mask_dropout: float = bounded(0.5, 0.0, 1.0)
    sketch_dropout: float = bounded(0.7, 0.0, 1.0)
    inpaint_dropout: float = bounded(0.1, 0.0, 1.0)
    noise: float = bounded(0.0, 0.0, 1.0)  # conditioning augmentation: sd of jitter, see there


@dataclasses.dataclass(frozen=True, kw_only=True)
class SketchConfig:
    """The sketch-grounded perception branch; weight 0 leaves it out."""

    weight: float = bounded(0.0, 0.0, 100.0)  # of the branch's loss
    source: str = choice("edges", "mask")  # mask: its contour where an image has one
    scale: float = bounded(1.0, 0.1, 64.0)  # of the edges: sigma of the smoothing, in pixels
    log_snr_centre: float = bounded(0.0, -20.0, 20.0)  # noise level from which on sketches count


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Where a generator starts from, and what of it is trained."""

    base: str = ""  # folder of a trained generator's artifact; empty: from scratch
    method: str = choice("lora", "full", "none")
    rank: int = bounded(8, 1, 4096)
    alpha: float = bounded(8.0, 0.0, 1e6)  # the update is scaled by alpha / rank
    targets: tuple[str, ...] = ("*/kernel",)  # path patterns of the adapted kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Training of the diffusion model."""

    model: UNetConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    conditions: ConditionsConfig = ConditionsConfig()
    sketch: SketchConfig = SketchConfig()
    adapt: AdaptConfig = AdaptConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    sampler: str = choice("square_root", "instance", "balanced", "tempered")
    temperature: float = bounded(1.0, 1.0, 1000.0)  # `tempered`: weight of a class ~ n^(1 / T)
    cbdm_weight: float = bounded(0.0, 0.0, 10.0)  # tau of CBDM's regulariser
    cbdm_commitment: float = bounded(0.25, 0.0, 10.0)  # gamma, of its second term
    cbdm_power: float = bounded(1.0, 0.0, 1.0)  # other labels are drawn as n^power; 0: alike
    steps: int = bounded(400, 1)
    batch_size: int = bounded(128, 1)
    ema: str = choice("exponential", "power")
    ema_decay: float = bounded(0.999, 0.0, 1.0)
    ema_lengths: tuple[float, ...] = bounded((0.05, 0.1), 0.001, 0.28)  # `power`: sigma_rel
    ema_snapshots: int = bounded(8, 1, 1000)  # `power`: kept for the choice after training
    condition_dropout: float = bounded(0.1, 0.0, 1.0)  # of all conditions of an example together
    seed: int = bounded(0, 0)
