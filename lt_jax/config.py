"""What each stage receives: frozen dataclasses, built from a ConfigDict; errors name the field.

A config file returns a locked `ml_collections.ConfigDict` with the same names as the dataclasses
below, and `build(Config, config_dict)` turns it into them. They are hashable, so that a compiled
step can be cached by the config that it was built from.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
    profile: str = choice("natural", "exponential", "pareto", "few_shot")
    shots: int = bounded(10, 1)  # `few_shot`: train images that each class keeps
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
    attention: str = choice("everywhere", "encoder")  # encoder: going down and once in the middle
    attention_chunk: int = bounded(1024, 1)  # queries at once where no fused kernel is at hand
    head_channels: int = bounded(64, 1, 1024)
    groups: int = bounded(0, 0, 1024)  # of GroupNorm; 0: at most 32, of at least 4 channels
    resample: str = choice("block", "convolution")  # convolution: 5x5 with stride 2 (BUSGen)
    modulation: str = choice("scale_shift", "shift")  # how a block reads the embedding
    class_embedding: str = choice("sum", "concatenate")  # of class and device (BUSGen: the latter)
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
class GuidanceConfig:
    """How predictions under conditions are combined; the joint scale is `guidance_scale`."""

    mode: str = choice("joint", "composed")
    label: float = bounded(1.5, 0.0, 100.0)  # `composed`: a scale for each condition
    boxes: float = bounded(1.0, 0.0, 100.0)
    device: float = bounded(1.0, 0.0, 100.0)
    attributes: float = bounded(1.0, 0.0, 100.0)
    mask: float = bounded(1.0, 0.0, 100.0)
    sketch: float = bounded(1.0, 0.0, 100.0)
    log_snr_low: float = bounded(-100.0, -100.0, 100.0)  # guided in this interval only
    log_snr_high: float = bounded(100.0, -100.0, 100.0)
    rescale: float = bounded(0.0, 0.0, 1.0)  # phi of Lin et al. 2024; 0: off


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """How many images of each class are generated, and how."""

    method: str = choice("generate", "inpaint", "repaint", "translate")
    given: tuple[str, ...] = ("label", "boxes", "device", "attributes")  # conditions, if trained
    boxes: str = choice("prior", "train")  # whence boxes come: the class's density, or its images
    source: str = choice("head", "all", "class")  # whose images are inpainted or translated
    source_classes: tuple[str, ...] = ()  # instead of `source`: classes by name ("normal")
    shapes: str = choice("class", "all", "source")  # whose lesion masks are inpainted
    strength: float = bounded(0.6, 0.01, 1.0)  # `translate`: time that the source is noised to
    strengths: tuple[float, ...] = bounded((), 0.01, 1.0)  # one a class; empty: `strength` for all
    soft_labels: bool = False  # `translate`: the label keeps the source's part
    repaint_jump: int = bounded(2, 1, 1000)  # `repaint`: steps of a jump back (250 steps: 10)
    repaint_resamples: int = bounded(5, 1, 100)  # `repaint`: passes over each jump
    seam: int = bounded(0, 0, 64)  # pixels outside a hole over which it is blended; 0: exact
    sampler: str = choice("dpmpp_2m", "ddim", "ancestral", "dpmpp_2m_sde", "heun")
    grid: str = choice("time", "log_snr", "karras")
    eta: float = bounded(0.0, 0.0, 1.0)  # of `ddim`
    threshold: str = choice("static", "dynamic", "none")  # of the denoised image, each step
    percentile: float = bounded(0.995, 0.5, 1.0)  # of `dynamic`
    ema_length: float = bounded(0.0, 0.0, 0.28)  # of a `power` EMA; 0: the first one trained
    guidance: GuidanceConfig = GuidanceConfig()
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


def arms(**fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arms by name for `config.classify.arms`; fields left out keep the defaults of `ArmConfig`."""
    default = to_dict(ArmConfig())
    return {name: {**default, **values} for name, values in fields.items()}


def defaults(cls: type = Config) -> ml_collections.ConfigDict:
    """The locked ConfigDict of `cls`'s defaults, for config files to start from."""
    config = ml_collections.ConfigDict(to_dict(cls()))
    return config.lock()
