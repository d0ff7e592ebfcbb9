"""What each stage receives: frozen dataclasses, built from a ConfigDict; errors name the field.

A config file returns a locked `ml_collections.ConfigDict` with the same names as the dataclasses
below, and `build(Config, config_dict)` turns it into them. They are hashable, so that a compiled
step can be cached by the config that it was built from.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections

from lt_jax.fields import ConfigError as ConfigError
from lt_jax.fields import FrozenDict, bounded, choice, not_in_key
from lt_jax.fields import build as build
from lt_jax.fields import key_fields as key_fields
from lt_jax.fields import to_dict as to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Fractions of each class's groups. What the four leave over goes to train."""

    policy_val: float = bounded(0.1, 0.0, 0.9)
    val: float = bounded(0.1, 0.0, 0.9)
    test: float = bounded(0.2, 0.01, 0.9)
    seed: int = bounded(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split, and which tail their train split is given."""

    source: str = "digits"  # a registered source, or "tfds:<name>"
    root: str = ""  # where the images lie; unused by embedded sources
    csv: str = ""  # `folder` only: a CSV manifest in place of class folders
    manifest: str = ""  # a saved manifest to reuse: its splits, not new ones
    image_size: int = bounded(32, 4, 1024)
    channels: int = bounded(3, 1, 3)
    split: SplitConfig = SplitConfig()
    profile: str = choice("natural", "exponential", "pareto")
    imbalance_factor: float = bounded(1.0, 1.0, 1e6)  # largest over smallest train count
    pareto_shape: float = bounded(6.0, 0.1, 100.0)
    near_duplicates: str = choice("move", "report", "off")
    duplicate_distance: float = bounded(0.01, 0.0, 2.0)  # 1 - correlation of thumbnails
    on_bad_image: str = choice("error", "skip")
    decode_once_mib: int = not_in_key(4096)  # larger sets are decoded as they are read


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, then cosine decay to zero or a constant rate."""

    learning_rate: float = bounded(1e-3, 0.0, 10.0)
    warmup_steps: int = bounded(50, 0)
    schedule: str = choice("cosine", "constant")
    weight_decay: float = bounded(0.0, 0.0, 10.0)
    b2: float = bounded(0.99, 0.0, 1.0)
    clip_norm: float = bounded(1.0, 1e-6, 1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation on device, drawn per image."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotate90: bool = False
    shift: int = bounded(0, 0, 64)  # pixels, edge-padded, each axis uniform in [-shift, shift]
    scale: float = bounded(0.0, 0.0, 0.9)  # zoom uniform in [1 - scale, 1 + scale]
    rotate: float = bounded(0.0, 0.0, 180.0)  # degrees, uniform in [-rotate, rotate]
    brightness: float = bounded(0.0, 0.0, 1.0)
    contrast: float = bounded(0.0, 0.0, 1.0)
    saturation: float = bounded(0.0, 0.0, 1.0)
    cutout: int = bounded(0, 0, 512)  # side of an erased square, in pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """ADM / DDPM++ UNet."""

    channels: tuple[int, ...] = bounded((32, 64), 1, 4096)
    blocks: int = bounded(2, 1, 16)
    attention_resolutions: tuple[int, ...] = (8,)
    head_channels: int = bounded(64, 1, 1024)
    embedding: int = bounded(128, 2, 8192)
    dropout: float = bounded(0.0, 0.0, 0.9)
    patch_size: int = bounded(1, 1, 16)  # space-to-depth before the first convolution
    dtype: str = choice("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Variance-preserving diffusion in continuous time."""

    schedule: str = choice("cosine", "linear")
    beta_min: float = bounded(0.1, 0.0, 100.0)  # linear schedule: beta(0)
    beta_max: float = bounded(20.0, 0.0, 1000.0)  # linear schedule: beta(1)
    prediction: str = choice("v", "eps", "x0")
    min_snr_gamma: float = bounded(5.0, 0.0, 1e6)  # 0 leaves the eps-weighted loss as it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Training of the diffusion model."""

    model: UNetConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    sampler: str = choice("square_root", "instance", "balanced")
    steps: int = bounded(400, 1)
    batch_size: int = bounded(128, 1)
    ema_decay: float = bounded(0.999, 0.0, 1.0)
    condition_dropout: float = bounded(0.1, 0.0, 1.0)
    seed: int = bounded(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Vision transformer; a variant sets width, depth, heads and MLP, any of which may be given."""

    variant: str = choice("Ti", "S", "B", "custom")
    width: int = bounded(192, 1, 8192)  # read where variant is custom, like the next three
    depth: int = bounded(12, 1, 128)
    heads: int = bounded(3, 1, 128)
    mlp: int = bounded(768, 1, 32768)
    patch_size: int = bounded(4, 1, 64)
    position: str = choice("sincos", "learned")
    pool: str = choice("gap", "token")
    dropout: float = bounded(0.0, 0.0, 0.9)
    drop_path: float = bounded(0.0, 0.0, 0.9)
    dtype: str = choice("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Pre-activation-free basic-block residual network with GroupNorm."""

    channels: tuple[int, ...] = bounded((16, 32, 64), 1, 4096)
    blocks: tuple[int, ...] = bounded((2, 2, 2), 1, 64)
    dtype: str = choice("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Which network classifies; both descriptions may stand, `kind` chooses."""

    kind: str = choice("vit", "resnet")
    vit: ViTConfig = ViTConfig()
    resnet: ResNetConfig = ResNetConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """A classifier on real train images; its features feed selection and fidelity."""

    model: ClassifierConfig = ClassifierConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: str = choice(
        "balanced_softmax",
        "cross_entropy",
        "inverse_weighted",
        "effective_number",
        "focal",
        "ldam_drw",
        "logit_adjusted",
    )
    sampler: str = choice("instance", "balanced", "square_root")
    steps: int = bounded(400, 1)
    batch_size: int = bounded(128, 1)
    seed: int = bounded(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which synthetic images are accepted."""

    score: str = choice("mahalanobis", "none")
    keep_rate: float = bounded(0.9, 0.0, 1.0)  # gamma: held-out real images the threshold accepts
    folds: int = bounded(5, 2, 100)
    pooling: float = bounded(20.0, 0.0, 1e6)  # images at which a class's own threshold weighs half
    label_probability: float = bounded(0.3, 0.0, 1.0)  # of the intended class, under the extractor


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """How many images of each class are generated, and how."""

    sampler: str = choice("dpmpp_2m", "ddim")
    steps: int = bounded(20, 1, 2000)
    guidance_scale: float = bounded(1.5, 0.0, 100.0)
    batch_size: int = bounded(128, 1)
    fill_to: int = bounded(0, 0)  # images a class should reach, both kinds; 0: the head's
    min_dose: float = bounded(0.0, 0.0, 1000.0)  # accepted images a class, over its real ones
    max_attempts: float = bounded(3.0, 1.0, 1000.0)  # candidates at most, over images asked
    seed: int = bounded(0, 0)
    selection: SelectionConfig = SelectionConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """A way to train the classifier: loss, sampler, controller, network."""

    loss: str = choice(
        "cross_entropy",
        "balanced_softmax",
        "inverse_weighted",
        "effective_number",
        "focal",
        "ldam_drw",
        "logit_adjusted",
    )
    sampler: str = choice("instance", "balanced", "square_root")
    controller: str = choice("none", "uniform", "fill_to_head", "source_replay")
    dose: float = bounded(0.0, 0.0, 1000.0)  # `uniform` and its replay: synthetic over real
    fill_to: int = bounded(0, 0)  # `fill_to_head` and its replay: count to reach; 0: the head's
    network: str = choice("default", "vit", "resnet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """The recipe that all arms share, and the arms."""

    model: ClassifierConfig = ClassifierConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    steps: int = bounded(400, 1)
    rounds: int = bounded(4, 1)
    batch_size: int = bounded(128, 1)
    logit_adjustment: float = bounded(1.0, 0.0, 10.0)  # tau of `logit_adjusted` and of post-hoc
    seeds: tuple[int, ...] = bounded((0, 1, 2), 0)
    arms: Mapping[str, ArmConfig] = dataclasses.field(
        default_factory=lambda: FrozenDict({"ce": ArmConfig()})
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How the arms are compared."""

    baseline: str = "ce"
    head_above: int = bounded(100, 0)  # train count of a head class exceeds this (CIFAR-LT)
    tail_below: int = bounded(20, 0)  # train count of a tail class is below this
    group_by: str = choice("counts", "thirds")  # thirds: equal numbers of classes, by count
    resamples: int = bounded(2000, 100, 1_000_000)
    permutations: int = bounded(2000, 100, 1_000_000)
    ece_bins: int = bounded(15, 2, 1000)
    seed: int = bounded(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How the run is carried out; nothing here enters a cache key."""

    cpu_devices: int = bounded(2, 1, 256)  # virtual devices where there is no accelerator
    log_every: int = bounded(50, 1)
    checkpoint_every: int = bounded(200, 1)
    compilation_cache: str = ""  # folder; empty: `.jax_cache` in the workdir
    loader_workers: int = bounded(0, 0, 256)  # grain worker processes; 0: threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    data: DataConfig = DataConfig()
    generator: GeneratorConfig = GeneratorConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    classify: ClassifyConfig = ClassifyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()


def defaults(cls: type = Config) -> ml_collections.ConfigDict:
    """The locked ConfigDict of `cls`'s defaults, for config files to start from."""
    config = ml_collections.ConfigDict(to_dict(cls()))
    return config.lock()
