"""What cannot work is refused before the first stage: conditions, guidance and averages."""

import dataclasses

import pytest

from lt_jax import preflight
from lt_jax.config import (
    ConditionsConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    GeneratorConfig,
    GuidanceConfig,
    SelectionConfig,
    SplitConfig,
    SynthesizeConfig,
)
from lt_jax.errors import UserError

DIGITS = DataConfig(source="digits", image_size=8, channels=1)
PHANTOM = DataConfig(source="phantom:12", image_size=8, channels=1)


def config(data=DIGITS, conditions=None, **synthesize):
    return Config(
        data=data,
        generator=GeneratorConfig(conditions=conditions or ConditionsConfig()),
        synthesize=SynthesizeConfig(**synthesize),
    )


def check(run):
    preflight.check_synthesis(run, preflight.vocabulary(run))


HOLED = {"inpaint": True, "mask": True}
BOXED = {"boxes": "channel", "max_boxes": 1}
COMPOSED = GuidanceConfig(mode="composed")


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (config(conditions=ConditionsConfig(device="device")), "no image of this set has a"),
        (config(ema_length=0.1), "ema_length"),
        (config(method="inpaint"), "trained for it"),
        (config(PHANTOM, ConditionsConfig(**HOLED), method="inpaint"), "label_dropout"),
        (config(PHANTOM, ConditionsConfig(**BOXED), guidance=COMPOSED), "label_dropout"),
        (config(PHANTOM, method="repaint", steps=4, repaint_jump=4), "jump"),
        (config(selection=SelectionConfig(scores=("denoising",), noise_times=())), "noise_times"),
        (config(dataclasses.replace(DIGITS, split=SplitConfig(val=0.0))), "memorization.gate"),
        (config(counts=(3, 4)), "counts: got 2"),
    ],
)
def test_what_cannot_work_is_refused(run, word):
    with pytest.raises(ConfigError, match=word):
        check(run)


def test_a_positive_class_is_one_of_two_before_anything_is_trained():
    two = dataclasses.replace(PHANTOM, label="malignant", classes=("benign", "malignant"))
    named = lambda name: Config(data=two, evaluate=EvaluateConfig(positive=name))
    preflight.check_positive(named("benign"), two.classes)
    preflight.check_positive(named(""), ("cyst",))
    with pytest.raises(UserError, match="positive: got 'malign'; takes one of benign, malignant"):
        preflight.check_positive(named("malign"), two.classes)
    with pytest.raises(UserError, match="positive: got 'cyst' with"):
        preflight.check_positive(named("cyst"), ("cyst", "lipoma", "dcis"))


def test_what_works_is_not_refused():
    check(config())
    check(config(guidance=COMPOSED))
    told = ConditionsConfig(**HOLED, label_dropout=0.1)
    check(config(PHANTOM, told, method="inpaint", given=("label", "mask")))
    check(config(PHANTOM, ConditionsConfig(**HOLED), method="inpaint", guidance_scale=1.0))


def test_devices_are_counted_over_the_source():
    run = config(PHANTOM, ConditionsConfig(device="device"))
    assert preflight.vocabulary(run).devices == 3
