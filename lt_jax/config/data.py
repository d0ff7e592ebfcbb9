"""Fields of data: which images, splits, and how images are augmented."""

import dataclasses

from lt_jax.config.fields import bounded, choice, in_key_if_set, not_in_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Fractions of each class's groups. What the four leave over goes to train."""

    policy_val: float = bounded(0.1, 0.0, 0.9)
    val: float = bounded(0.1, 0.0, 0.9)
    test: float = bounded(0.2, 0.01, 0.9)
    folds: int = bounded(0, 0, 100)  # 2 or more: test is one of so many parts, in place of `test`
    fold: int = bounded(0, 0, 99)  # which of them, from 0
    seed: int = bounded(0, 0)
    # "column=value", as "official_split=test": these images are test, in place of a fraction;
    # policy_val and val are fractions of the others then.
    test_where: str = in_key_if_set("")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split, and which tail their train split is given."""

    source: str = "digits"  # a registered source, or "tfds:<name>"
    root: str = ""  # where the images lie; unused by embedded sources
    csv: str = ""  # `folder` only: a CSV manifest in place of class folders
    label: str = "label"  # what is classified: the source's classes, "device" or an attribute
    classes: tuple[str, ...] = ()  # "name", or "name=value,value" of `label`; empty: each value
    manifest: str = ""  # a saved manifest to reuse: its splits, not new ones
    image_size: int = bounded(32, 4, 1024)
    channels: int = bounded(3, 1, 3)
    split: SplitConfig = SplitConfig()
    profile: str = choice("natural", "exponential", "pareto", "few_shot")
    shots: int = bounded(10, 1)  # `few_shot`: train images that each class keeps
    imbalance_factor: float = bounded(1.0, 1.0, 1e6)  # largest over smallest train count
    pareto_shape: float = bounded(6.0, 0.1, 100.0)
    train_fraction: float = bounded(1.0, 1e-6, 1.0)  # of each class, the same ones in any larger
    near_duplicates: str = choice("move", "report", "off")
    duplicate_distance: float = bounded(0.01, 0.0, 2.0)  # 1 - correlation of thumbnails
    on_bad_image: str = choice("error", "skip")
    decode_once_mib: int = not_in_key(4096)  # larger sets are decoded as they are read
    follow_links: bool = not_in_key(False)  # symbolic links below `root` may lead out of it


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
