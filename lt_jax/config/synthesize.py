"""Fields of synthesis: guidance, sampler, selection."""

import dataclasses

from lt_jax.config.fields import bounded, choice, each_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorizationConfig:
    """When a synthetic image is taken for a copy of a train image."""

    gate: bool = True
    similarity: str = choice("both", "cosine", "ms_ssim")  # a copy by any of these is a copy
    false_alarm: float = bounded(0.01, 0.0, 1.0)  # val images that would be taken for copies
    candidates: int = bounded(8, 1, 1024)  # MS-SSIM is computed of so many by features, by pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which synthetic images are accepted."""

    scores: tuple[str, ...] = each_of(  # several: the mean of their ranks; none: all pass
        ("mahalanobis",),
        "mahalanobis",
        "mahalanobis_per_class",
        "relative_mahalanobis",
        "knn",
        "residual",
        "vim",
        "energy",
        "max_softmax",
        "max_logit",
        "denoising",
    )
    neighbors: int = bounded(5, 1, 1000)  # k of `knn`
    explained: float = bounded(0.9, 0.0, 1.0)  # of the variance, by the subspace of these two
    noise_times: tuple[float, ...] = bounded((0.2, 0.4, 0.6), 0.0, 1.0)  # of `denoising`
    keep_rate: float = bounded(0.9, 0.0, 1.0)  # gamma: held-out real images the threshold accepts
    held_out: str = choice("train", "policy_val")  # train: by folds
    folds: int = bounded(5, 2, 100)
    pooling: float = bounded(20.0, 0.0, 1e6)  # images at which a class's own threshold weighs half
    label_probability: float = bounded(0.3, 0.0, 1.0)  # of the intended class, under the extractor
    memorization: MemorizationConfig = MemorizationConfig()
    surplus: float = bounded(1.0, 1.0, 100.0)  # accepted over wanted, to choose varied ones from
    keep_rejected: bool = False  # images of rejected candidates too, to look at


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
    counts: tuple[int, ...] = bounded((), 0)  # accepted images, one a class; empty: by fill_to
    min_dose: float = bounded(0.0, 0.0, 1000.0)  # accepted images a class, over its real ones
    max_attempts: float = bounded(
        3.0, 1.0, 1000.0
    )  # candidates at most, over images (and surplus) asked
    seed: int = bounded(0, 0)
    selection: SelectionConfig = SelectionConfig()
