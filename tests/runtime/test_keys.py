"""Named random streams: apart from each other, and each by its name and index alone."""

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.runtime import keys


def bits(key) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def test_streams_of_different_names_differ_and_repeat():
    root = keys.root(3)
    names = ("init", "train", "augment", "dropout", "synthesize", "noise", "labels")
    drawn = {tuple(bits(keys.stream(root, name)).tolist()) for name in names}
    assert len(drawn) == len(names)
    np.testing.assert_array_equal(
        bits(keys.stream(root, "init")), bits(keys.stream(keys.root(3), "init"))
    )
    assert (bits(keys.stream(root, "init")) != bits(keys.stream(keys.root(4), "init"))).any()


def test_streams_mean_the_same_in_every_process_and_version():
    """crc32 and not `hash`, which differs in every process."""
    np.testing.assert_array_equal(
        bits(keys.stream(keys.root(0), "train")),
        bits(jax.random.fold_in(jax.random.key(0), 0x5C66E4A3)),
    )


def test_the_key_of_an_example_depends_on_its_index_only():
    key = keys.root(1)
    whole = bits(keys.per_example(key, jnp.arange(12)))
    assert len({tuple(row) for row in whole.tolist()}) == 12
    parts = [keys.per_example(key, jnp.arange(12)[start : start + 5]) for start in (0, 5, 10)]
    np.testing.assert_array_equal(whole, np.concatenate([bits(part) for part in parts]))
    order = jnp.array([7, 0, 7])
    np.testing.assert_array_equal(bits(keys.per_example(key, order)), whole[[7, 0, 7]])
