"""Inception-V3 for FID: parameters, blocks against NumPy, files of weights without pickle."""

import io
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from lt_jax.models import inception, inception_weights, module
from lt_jax.models.inception_weights import InceptionError

PUBLISHED = 21_785_568  # parameters of torchvision's inception_v3 without its two classifiers


def windows(x, kernel, stride, padding, fill=0.0):
    """x [h w c] as [p q c kh kw]."""
    pads = [(p, p) for p in padding]
    x = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    return sliding_window_view(x, kernel, (0, 1))[::stride, ::stride]


def unit(params, x, stride=1, padded=True):
    """Convolution, scale and offset, ReLU of one image, by definition."""
    kernel = params["kernel"]
    sides = kernel.shape[:2]
    seen = windows(x, sides, stride, [s // 2 for s in sides] if padded else (0, 0))
    y = np.einsum("pqcij,ijcd->pqd", seen, kernel)
    return np.maximum(y * params["scale"] + params["bias"], 0)


def average(x):
    """Of those of 3 x 3 pixels that lie in the image."""
    return np.nanmean(windows(x, (3, 3), 1, (1, 1), np.nan), axis=(3, 4))


def maximum(x, stride=1, padding=1):
    return windows(x, (3, 3), stride, (padding, padding), -np.inf).max(axis=(3, 4))


def randomised(block, x, seed=0):
    """Parameters of a block, all of them away from 0 and 1, and its answer."""
    rng = np.random.default_rng(seed)
    shapes = module.abstract(block, x)
    draw = lambda leaf: rng.normal(0.5, 0.5, leaf.shape) / np.sqrt(leaf.size)
    params = jax.tree.map(lambda leaf: draw(leaf).astype(np.float32), shapes)
    return params, np.asarray(module.apply(block, params, jnp.asarray(x)))[0]


@pytest.fixture(scope="module")
def shapes():
    return module.abstract(inception.InceptionV3(), np.zeros((1, 299, 299, 3), np.float32))


def test_it_has_the_published_parameters(shapes):
    assert module.count(shapes) == PUBLISHED
    out = jax.eval_shape(
        lambda p, x: module.apply(inception.InceptionV3(), p, inception.prepared(x)),
        shapes,
        jax.ShapeDtypeStruct((2, 8, 8, 1), np.uint8),
    )
    assert out.shape == (2, inception.DIMENSIONS)


def test_a_block_that_keeps_the_size_is_that_of_its_definition():
    x = np.random.default_rng(1).normal(size=(1, 6, 6, 5)).astype(np.float32)
    params, found = randomised(inception.Even(**inception._a(7)), x)
    run = lambda y, *names: y if not names else run(unit(params[names[0]], y), *names[1:])
    expected = [
        run(x[0], "branch1x1"),
        run(x[0], "branch5x5_1", "branch5x5_2"),
        run(x[0], "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        run(average(x[0]), "branch_pool"),
    ]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=-1), rtol=1e-4, atol=1e-6)


def test_a_block_that_halves_is_that_of_its_definition():
    x = np.random.default_rng(2).normal(size=(1, 7, 7, 4)).astype(np.float32)
    params, found = randomised(inception.Halving(inception._D), x)
    y = unit(params["branch3x3_1"], x[0])
    z = x[0]
    for name in ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"):
        z = unit(params[name], z)
    expected = [
        unit(params["branch3x3_2"], y, 2, padded=False),
        unit(params["branch7x7x3_4"], z, 2, padded=False),
        maximum(x[0], 2, 0),
    ]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_the_last_blocks_pool_by_mean_and_then_by_maximum(last):
    x = np.random.default_rng(3).normal(size=(1, 4, 4, 6)).astype(np.float32)
    params, found = randomised(inception.Wide(last), x)
    short, long = unit(params["branch3x3_1"], x[0]), unit(params["branch3x3dbl_1"], x[0])
    long = unit(params["branch3x3dbl_2"], long)
    pooled = maximum(x[0]) if last else average(x[0])
    expected = [unit(params["branch1x1"], x[0])]
    expected += [unit(params[f"branch3x3_2{side}"], short) for side in "ab"]
    expected += [unit(params[f"branch3x3dbl_3{side}"], long) for side in "ab"]
    expected += [unit(params["branch_pool"], pooled)]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=-1), rtol=1e-4, atol=1e-6)


def test_gray_is_repeated_and_levels_are_kept():
    gray = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1) * 4
    found = np.asarray(inception.prepared(gray))
    assert found.shape == (1, 299, 299, 3)
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    # The mean over the square is that of the picture: bilinear, no pixel weighs more.
    np.testing.assert_allclose(found.mean(), gray.mean() / 127.5 - 1, atol=2e-3)
    flat = np.asarray(inception.prepared(np.full((1, 8, 8, 3), 255, np.uint8)))
    np.testing.assert_allclose(flat, 1.0, atol=1e-6)


def arrays_of(shapes, prefix="", seed=0):
    """A checkpoint's arrays, by its names, of such shapes."""
    rng, found = np.random.default_rng(seed), {}
    for name, held in shapes.items():
        path = f"{prefix}{name}"
        if "kernel" not in held:
            found |= arrays_of(held, f"{path}.", seed + 1)
            continue
        height, width, inputs, outputs = held["kernel"].shape
        # Float16 halves what is written; the values are exact in it.
        found[f"{path}.conv.weight"] = np.zeros((outputs, inputs, height, width), np.float16)
        found[f"{path}.conv.weight"][0, 0, 0, -1] = 0.5
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{path}.bn.{part}"] = rng.integers(1, 9, outputs).astype(np.float16)
    return found


def save_safetensors(path, arrays):
    header, raw, at = {"__metadata__": {"format": "pt"}}, io.BytesIO(), 0
    kinds = {np.dtype(np.float16): "F16", np.dtype(np.int64): "I64"}
    for name, array in arrays.items():
        entry = {"dtype": kinds[array.dtype], "shape": array.shape}
        header[name] = {**entry, "data_offsets": [at, at + array.nbytes]}
        raw.write(array.tobytes())
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw.getvalue())


def test_both_formats_are_read_and_normalisation_is_folded(shapes, tmp_path):
    arrays = arrays_of(shapes)
    extra = {"fc.weight": np.zeros((3, 2), np.float16), "n": np.zeros((), np.int64)}
    save_safetensors(tmp_path / "w.safetensors", arrays | extra)
    found = inception_weights.load(tmp_path / "w.safetensors")
    assert jax.tree.map(lambda leaf: leaf.shape, found) == jax.tree.map(lambda s: s.shape, shapes)
    name, held = "Mixed_6b.branch7x7_2", found["Mixed_6b"]["branch7x7_2"]
    part = lambda suffix: arrays[f"{name}.bn.{suffix}"].astype(float)
    x = 3.0  # any value: folded and unfolded agree
    expected = (x - part("running_mean")) / np.sqrt(part("running_var") + 1e-3)
    expected = expected * part("weight") + part("bias")
    np.testing.assert_allclose(x * held["scale"] + held["bias"], expected, rtol=1e-5, atol=1e-5)
    assert held["kernel"][0, 6, 0, 0] == 0.5 and held["kernel"].shape == (1, 7, 128, 128)
    np.savez(tmp_path / "w.npz", **arrays)
    again = inception_weights.load(tmp_path / "w.npz")
    jax.tree.map(np.testing.assert_array_equal, found, again)
    del arrays["Mixed_7c.branch1x1.bn.bias"]
    with pytest.raises(InceptionError, match=r"Mixed_7c\.branch1x1\.bn\.bias is missing"):
        inception_weights.params_of(arrays, "here")
    arrays["Mixed_7c.branch1x1.bn.bias"] = np.zeros(3, np.float16)
    with pytest.raises(InceptionError, match=r"is of shape \(3,\); takes \(320,\)"):
        inception_weights.params_of(arrays, "here")


class Trap:
    """Ends the test where it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_no_pickle_is_ever_loaded(tmp_path):
    for name in ("weights.pth", "weights.pkl"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(InceptionError, match="weights_only=True"):
            inception_weights.load(path)
    for name in ("weights.npz", "weights.safetensors"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(InceptionError, match="no readable arrays"):
            inception_weights.load(path)
    held = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "weights.npz", **{"Conv2d_1a_3x3.conv.weight": held})
    with pytest.raises(InceptionError, match="no readable arrays"):
        inception_weights.load(tmp_path / "weights.npz")


def test_missing_and_damaged_files_are_told(tmp_path):
    with pytest.raises(InceptionError, match="no file"):
        inception_weights.load(tmp_path / "nowhere.npz")
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"a": np.ones((4, 4), np.float16)})
    whole = path.read_bytes()
    for raw in (b"", whole[:5], whole[:20], whole[:-3]):
        path.write_bytes(raw)
        with pytest.raises(InceptionError, match="no readable arrays"):
            inception_weights.load(path)
