"""The ablation: one part less each time, all else shared, differences the right way round."""

import dataclasses
import json
import pathlib
import types

import numpy as np
import pytest

from experiments import ablation
from lt_jax import config as config_lib
from lt_jax import specs as specs_lib
from lt_jax.config import ConfigError
from lt_jax.errors import Preempted
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from tests.shrink import shrink
from tests.test_golden_configs import load

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# What taking a part away makes anew, where the full system has it.
TOUCHED = {
    "selection": {"synthesize", "mixing", "classify", "report"},
    "memorisation_gate": {"synthesize", "mixing", "classify", "report"},
    "sketch_branch": {"generator", "synthesize", "mixing", "classify", "report"},
    "inpainting": {"generator", "synthesize", "mixing", "classify", "report"},
    "balanced_generator": {"generator", "synthesize", "mixing", "classify", "report"},
    "balancing": {"mixing", "classify", "report"},
    "policy": {"classify", "report"},
    "synthesis": {"classify", "report"},
}


def keys(config):
    specs = specs_lib.of(config_lib.build(config_lib.Config, config))
    return {(spec.stage, spec.key) for spec in specs}


@pytest.fixture(scope="module")
def digits():
    config = shrink(load(CONFIGS / "digits.py"), levels=1)
    with config.unlocked():
        config.data.imbalance_factor = 10.0
        config.mixing.policy.seeds = (0,)
    return config


@pytest.mark.parametrize("name", ["digits", "phantom"])
def test_each_variant_makes_anew_what_its_part_touches_and_nothing_else(name):
    configs, absent = ablation.variants(load(CONFIGS / f"{name}.py"), "", 2)
    assert set(configs) | set(absent) == {"full", *ablation.PARTS}
    assert set(absent) == ({"lora", "inpainting"} if name == "digits" else {"lora"})
    whole = keys(configs.pop("full"))
    for part, config in configs.items():
        new = {stage.partition("/")[0] for stage, _ in keys(config) - whole}
        assert new == TOUCHED[part], part


def test_parts_that_a_config_cannot_have_are_told_with_the_reason(tmp_path):
    config = load(CONFIGS / "digits.py")
    _, absent = ablation.variants(config, "", 2)
    assert absent["lora"].startswith("no trained generator")
    assert absent["inpainting"].startswith("digits has neither lesion masks nor boxes")
    with config.unlocked():
        config.data.split.update(val=0.0, policy_val=0.0)
    _, absent = ablation.variants(config, "", 2)
    assert {"memorisation_gate", "policy"} <= set(absent)
    (tmp_path / "artifact.json").write_text(json.dumps({"key": "0" * 64}))
    configs, absent = ablation.variants(load(CONFIGS / "digits.py"), str(tmp_path), 2)
    assert configs["full"].generator.adapt.method == "lora" and "lora" in configs
    assert configs["lora"].generator.adapt.base == ""
    assert absent["sketch_branch"] == absent["inpainting"] == ablation._BASED
    with pytest.raises(ConfigError, match="--parts: got 'generator'; takes some of selection"):
        ablation.variants(config, "", 2, ["generator"])


def test_without_inpainting_all_else_that_is_told_stays():
    config = load(CONFIGS / "phantom.py")
    for given, method, left in (
        (None, "generate", ["label"]),
        (("label", "mask", "device"), "inpaint", ["label", "device"]),
    ):
        if given:
            with config.unlocked():
                config.generator.conditions.update(inpaint=True, mask=True, label_dropout=0.1)
                config.synthesize.update(method=method, given=given)
        configs, _ = ablation.variants(config, "", 2, ["inpainting"])
        whole, without = configs["full"].synthesize, configs["inpainting"].synthesize
        assert (whole.method, without.method) == ("inpaint", "generate")
        assert list(whole.given) == list(given or ("label", "mask")) and list(without.given) == left


def test_a_variant_that_fails_does_not_keep_the_others_from_being_made(capsys):
    made = []

    class Run:
        def __init__(self, name, error=None):
            self.name, self.error = name, error

        def run(self, stages):
            assert "report" not in stages
            if self.error:
                raise self.error
            made.append(self.name)

    runs = [Run("full"), Run("a", ConfigError("no gate")), Run("b", ValueError("x")), Run("c")]
    assert ablation.make({run.name: run for run in runs}) == ["a", "b"]
    assert made == ["full", "c"]
    told = capsys.readouterr().err
    assert "a: failed (no gate)" in told and told.count("Traceback") == 1
    with pytest.raises(Preempted):
        ablation.make({"full": Run("full", Preempted("saved")), "c": Run("c")})
    assert made == ["full", "c"]


def test_a_failed_variant_ends_the_command_with_1(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation.mesh, "configure_devices", lambda *_: None)
    monkeypatch.setattr(ablation, "variants", lambda *_: ({}, {"lora": "no base"}))
    monkeypatch.setattr(ablation, "make", lambda _: ["policy"])
    given = types.SimpleNamespace(
        config=load(CONFIGS / "digits.py"),
        out=str(tmp_path), base="", seeds=2, parts=[], collect=False,
    )  # fmt: skip
    monkeypatch.setattr(ablation.flags, "FLAGS", given)
    with pytest.raises(SystemExit, match="lt_jax: policy: failed"):
        ablation.main([])


def test_the_table_is_full_minus_ablated_with_interval_and_tests(digits, tmp_path, monkeypatch):
    # A network of four steps passes no honest gate.
    for name in ("selection", "memorisation_gate", "sketch_branch"):
        without = dataclasses.replace(ablation.PARTS[name], add=lambda _: "")
        monkeypatch.setitem(ablation.PARTS, name, without)
    configs, absent = ablation.variants(digits, "", 2, ["policy", "synthesis", "balancing"])
    runs = {name: Pipeline(c, tmp_path / name, tmp_path / "cache") for name, c in configs.items()}
    assert not ablation.make({name: run for name, run in runs.items() if name != "balancing"})
    assert len(list(tmp_path.glob("cache/synthesize-*"))) == 1
    results = ablation.collect(runs, absent, tmp_path)
    found = results["variants"]
    assert list(found) == ["full", "policy", "synthesis"]
    assert results["unfinished"] == ["balancing"] and results["comparisons"] == 2
    for name in ("policy", "synthesis"):
        for metric in ablation.METRICS:
            versus = found[name]["full_minus"][metric]
            means = [found[of]["metrics"][metric]["mean"] for of in ("full", name)]
            np.testing.assert_allclose(versus["difference"], means[0] - means[1], atol=1e-12)
            assert versus["ci95"][0] <= versus["ci95"][1] and versus["n"] == 2
            assert versus["p_holm"] >= versus["p"]
            if (ends := versus["score95"]) is not None:
                assert ends[0] <= versus["difference"] <= ends[1]
        assert found[name]["full_minus"]["balanced_accuracy"]["score95"] is not None
    assert found["full"]["cost"]["own"]["flops"] == 0 < found["policy"]["cost"]["own"]["flops"]
    assert found["synthesis"]["cost"]["all"]["flops"] < found["full"]["cost"]["all"]["flops"]
    text = tables.to_markdown(ablation.table(results))
    assert "without policy |" in text and "Holm p" in text and "(n=2)" in text
    assert "Holm over 2 comparisons; not finished, thus in no row" in text and "balancing." in text
    results["variants"]["policy"]["given"] = ["label"]
    assert "without policy (drawn from label) |" in tables.to_markdown(ablation.table(results))
    assert len((tmp_path / "test_openings.jsonl").read_text().splitlines()) == 1


def test_devices_are_made_before_anything_asks_for_one(tmp_path, monkeypatch):
    """What parts a system can have is asked of its networks, which takes a device."""
    order = []
    monkeypatch.setattr(ablation.mesh, "configure_devices", lambda *_: order.append("devices"))
    monkeypatch.setattr(ablation, "variants", lambda *_: (order.append("variants"), ({}, {}))[1])
    given = types.SimpleNamespace(
        config=load(CONFIGS / "digits.py"),
        out=str(tmp_path), base="", seeds=2, parts=[], collect=False,
    )  # fmt: skip
    monkeypatch.setattr(ablation.flags, "FLAGS", given)
    ablation.main([])
    assert order == ["devices", "variants"]
