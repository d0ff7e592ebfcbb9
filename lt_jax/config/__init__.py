"""What each stage receives: frozen dataclasses, built from a ConfigDict; errors name the field.

A config file returns a locked `ml_collections.ConfigDict` with the same names as the dataclasses
below, and `build(Config, config_dict)` turns it into them. They are hashable, so that a compiled
step can be cached by the config that it was built from.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from lt_jax.config.audit import AuditConfig as AuditConfig
from lt_jax.config.classify import ArmConfig as ArmConfig
from lt_jax.config.classify import ClassifyConfig as ClassifyConfig
from lt_jax.config.classify import ContrastiveConfig as ContrastiveConfig
from lt_jax.config.classify import ExtractorConfig as ExtractorConfig
from lt_jax.config.data import AugmentConfig as AugmentConfig
from lt_jax.config.data import DataConfig as DataConfig
from lt_jax.config.data import SplitConfig as SplitConfig
from lt_jax.config.detect import AssignConfig as AssignConfig
from lt_jax.config.detect import DecodeConfig as DecodeConfig
from lt_jax.config.detect import DetectArmConfig as DetectArmConfig
from lt_jax.config.detect import DetectConfig as DetectConfig
from lt_jax.config.detect import DetectorConfig as DetectorConfig
from lt_jax.config.evaluate import EvaluateConfig as EvaluateConfig
from lt_jax.config.fields import ConfigError as ConfigError
from lt_jax.config.fields import FrozenDict as FrozenDict
from lt_jax.config.fields import bounded, choice
from lt_jax.config.fields import build as build
from lt_jax.config.fields import free_paths as free_paths
from lt_jax.config.fields import key_fields as key_fields
from lt_jax.config.fields import to_dict as to_dict
from lt_jax.config.generator import AdaptConfig as AdaptConfig
from lt_jax.config.generator import ConditionsConfig as ConditionsConfig
from lt_jax.config.generator import GeneratorConfig as GeneratorConfig
from lt_jax.config.generator import ProcessConfig as ProcessConfig
from lt_jax.config.generator import SketchConfig as SketchConfig
from lt_jax.config.mixing import MixingConfig as MixingConfig
from lt_jax.config.mixing import PolicyConfig as PolicyConfig
from lt_jax.config.mixing import ProxyConfig as ProxyConfig
from lt_jax.config.mixing import RewardConfig as RewardConfig
from lt_jax.config.networks import ClassifierConfig as ClassifierConfig
from lt_jax.config.networks import ExpertsConfig as ExpertsConfig
from lt_jax.config.networks import OptimizerConfig as OptimizerConfig
from lt_jax.config.networks import ResNetConfig as ResNetConfig
from lt_jax.config.networks import UNetConfig as UNetConfig
from lt_jax.config.networks import ViTConfig as ViTConfig
from lt_jax.config.synthesize import GuidanceConfig as GuidanceConfig
from lt_jax.config.synthesize import MemorizationConfig as MemorizationConfig
from lt_jax.config.synthesize import SelectionConfig as SelectionConfig
from lt_jax.config.synthesize import SynthesizeConfig as SynthesizeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How the run is carried out; nothing here enters a cache key."""

    cpu_devices: int = bounded(2, 1, 256)  # virtual devices where there is no accelerator
    log_every: int = bounded(50, 1)
    checkpoint_every: int = bounded(200, 1)
    compilation_cache: str = ""  # folder; empty: `.jax_cache` in the workdir
    loader_workers: int = bounded(0, 0, 256)  # grain worker processes; 0: threads
    # Images that a training draws from are kept on every device where they take no more MiB than
    # this, and streamed where they take more, or files are decoded at each access; 0: always.
    resident_mib: int = bounded(256, 0)
    # Classifiers of equal recipes that are trained by one program, and how (`population.Together`):
    # rounding differs, as between numbers of devices, and nothing else. 1: one after the other.
    classifiers: int = bounded(1, 1, 1024)
    population: str = choice("map", "vmap", "devices")
    fsdp: int = bounded(1, 1)  # devices over which parameters and optimiser state are split
    host_timeout: int = bounded(100, 10, 3600)  # seconds until a silent process counts as lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    data: DataConfig = DataConfig()
    generator: GeneratorConfig = GeneratorConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    audit: AuditConfig = AuditConfig()
    mixing: MixingConfig = MixingConfig()
    classify: ClassifyConfig = ClassifyConfig()
    detect: DetectConfig = DetectConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()


def arms(**fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arms by name for `config.classify.arms`; fields left out keep the defaults of `ArmConfig`."""
    default = to_dict(ArmConfig())
    return {name: {**default, **values} for name, values in fields.items()}


def detect_arms(**fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arms by name for `config.detect.arms`; fields left out keep those of `DetectArmConfig`."""
    default = to_dict(DetectArmConfig())
    return {name: {**default, **values} for name, values in fields.items()}


def defaults(cls: type = Config) -> ml_collections.ConfigDict:
    """The locked ConfigDict of `cls`'s defaults, for config files to start from."""
    config = ml_collections.ConfigDict(to_dict(cls()))
    return config.lock()
