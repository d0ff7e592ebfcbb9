"""Compiling for a card that is not at hand: what needs no compiler for it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from experiments.throughput import deviceless
from lt_jax.models.attention import attention

FOLDER = pathlib.Path(deviceless.__file__).parent


def test_jax_answers_as_on_the_card_meanwhile_and_only_then():
    tokens = [jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.bfloat16)] * 3
    lowered = lambda: jax.jit(lambda *qkv: attention(*qkv, 64)).trace(*tokens).lower(
        lowering_platforms=("cuda",)
    )  # fmt: skip
    with deviceless.as_if_present():
        assert "__cudnn$fmha" in lowered().as_text()
        assert jax.local_devices(backend="cpu")[0].platform == "cpu"
    jax.clear_caches()
    assert "__cudnn$fmha" not in lowered().as_text() and jax.default_backend() == "cpu"


@pytest.mark.parametrize("name", ["deviceless_h200.json", "deviceless_h200_8.json"])
def test_the_table_is_that_of_the_file(name):
    rows = json.loads((FOLDER / name).read_text())
    lines = deviceless.table([deviceless.Compiled(**row) for row in rows]).splitlines()
    text = (FOLDER / "README.md").read_text()
    assert len(lines) == 2 + len(rows) and all(line in text for line in lines)


def test_programs_are_counted_with_attention_in_one_piece():
    made = deviceless.programs()
    config = deviceless.whole(made["BUSGen UNet, 160 px"].config)
    assert config.generator.model.attention_chunk == 1 << 30
    assert config.classify.model.vit.attention_chunk == 1 << 30
