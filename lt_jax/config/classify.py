"""Fields of the extractor, of the classifier and its arms."""

import dataclasses
from collections.abc import Mapping

from lt_jax.config.data import AugmentConfig
from lt_jax.config.fields import FrozenDict, bounded, choice
from lt_jax.config.networks import ClassifierConfig, OptimizerConfig

# Rules that the stage mixing learns: a policy that acts, its schedule, and that of random search.
LEARNED = ("policy", "policy_schedule", "random_search")

# Strong augmentation on device: RandAugment of each image, then images mixed with each other.
STRONG = (
    "randaugment",
    "mixup",
    "cutmix",
    "mixup_cutmix",
    "randaugment_mixup",
    "randaugment_cutmix",
    "randaugment_mixup_cutmix",
)

# What decides by itself how much of each class is synthetic.
RULES = (
    "uniform",
    "fill_to_head",
    "fixed_share",
    "inverse",
    "effective_number",
    "accuracy_adaptive",
    "bandit",
    "schedule",
    *LEARNED,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Training without labels (SimCLR), and of the linear head behind it."""

    temperature: float = bounded(0.2, 0.001, 10.0)
    projection: int = bounded(64, 1, 8192)  # dimensions in which views are compared
    probe_steps: int = bounded(300, 1)  # of the head, on features of all train images at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """A classifier, or a network without labels and a head, whose features feed selection."""

    objective: str = choice("supervised", "contrastive")
    contrastive: ContrastiveConfig = ContrastiveConfig()
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
        "lade",
    )
    sampler: str = choice("instance", "balanced", "square_root")
    steps: int = bounded(400, 1)
    batch_size: int = bounded(128, 1)
    seed: int = bounded(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """A way to train the classifier: loss, sampler, controller, network, and what it controls for.

    What costs more of one thing has less of another: a second stage has its steps from the first's.
    """

    loss: str = choice(
        "cross_entropy",
        "balanced_softmax",
        "inverse_weighted",
        "effective_number",
        "focal",
        "ldam_drw",
        "logit_adjusted",
        "lade",
    )
    sampler: str = choice("instance", "balanced", "square_root")
    controller: str = choice("none", *RULES, "source_replay", "shuffled")
    of: str = choice("", *RULES)  # mirrored by the last two; "": `uniform` by its dose, or filling
    dose: float = bounded(0.0, 0.0, 1000.0)  # `uniform`, `inverse`: synthetic over real, in all
    fill_to: int = bounded(0, 0)  # `fill_to_head`: count to reach; 0: the head's
    share: float = bounded(0.5, 0.0, 0.999)  # `fixed_share`; the highest of `accuracy_adaptive`
    beta: float = bounded(0.999, 0.0, 0.999999)  # `effective_number`; towards 1: filling
    levels: tuple[float, ...] = bounded((0.0, 0.2, 0.4, 0.6, 0.8), 0.0, 0.999)  # `bandit`
    schedule: str = ""  # `schedule`: its JSON file, such as mixture.json of a finished arm
    network: str = choice("default", "vit", "resnet")
    strong_augment: str = choice("", *STRONG)  # besides config.classify.augment; with both: a coin
    randaugment_ops: int = bounded(2, 1, 16)  # n, of each image
    randaugment_magnitude: float = bounded(9.0, 0.0, 30.0)  # m, of 30
    mix_alpha: float = bounded(1.0, 0.001, 100.0)  # mixup, CutMix: weight ~ Beta(alpha, alpha)
    mix_probability: float = bounded(1.0, 0.0, 1.0)  # of an image being mixed at all
    pool_labels: str = choice("own", "shuffled")  # shuffled: among the synthetic images in use
    second_stage: str = choice("", "crt", "tau_norm", "lws")  # of the head alone
    second_stage_steps: float = bounded(0.1, 0.001, 0.9)  # `crt`, `lws`: of config.classify.steps
    second_stage_rate: float = bounded(1.0, 0.0, 1000.0)  # `crt`, `lws`: times the learning rate
    experts: int = bounded(1, 1, 16)  # with one trunk; their mean logits are the answer
    expert_loss: str = choice("own", "balpoe", "ncl")  # own: `loss`, of each expert


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
