"""Columns of the loader: what is known of an image comes beside it, real or synthetic."""

import numpy as np
import pytest

from lt_jax.data.stream import MixedStream

SIZES = ((20, 9, 5), (7, 6, 11))  # real images of the three classes, then synthetic ones
SHARE = np.array([0.2, 0.5, 0.6])


def rows(sizes):
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def stores(first, count):
    """Images [count, 2, 2, 1] whose pixels hold first + index, and columns that say the same."""
    number = first + np.arange(count)
    images = np.broadcast_to(number[:, None, None, None], (count, 2, 2, 1)).astype(np.uint8)
    boxes = (number[:, None, None] / [[[1, 2, 3, 4]]]).astype(np.float32)
    return images, {"number": number.astype(np.int32), "boxes": boxes, "map": images[:, :1]}


def make(synthetic=True, workers=0, **columns):
    (real, real_columns), (extra, extra_columns) = stores(0, 34), stores(100, 24)
    pairs = {name: (real_columns[name], extra_columns[name]) for name in real_columns}
    if not synthetic:
        pairs = {name: (column, None) for name, (column, _) in pairs.items()}
    stream = MixedStream(
        real,
        rows(SIZES[0]),
        extra if synthetic else None,
        rows(SIZES[1]) if synthetic else None,
        batch_size=16,
        seed=0,
        columns={**pairs, **columns},
        workers=workers,
    )
    stream.set_mixture(np.array([0.5, 0.3, 0.2]), SHARE if synthetic else np.zeros(3))
    return stream


@pytest.mark.parametrize("synthetic", [True, False], ids=["mixed", "real alone"])
def test_columns_come_beside_their_image(synthetic):
    stream = make(synthetic)
    for _ in range(6):
        batch = next(stream)
        number = batch["image"][:, 0, 0, 0].astype(np.int32)
        np.testing.assert_array_equal(number >= 100, batch["synthetic"])
        assert batch["synthetic"].any() == synthetic and not batch["synthetic"].all()
        np.testing.assert_array_equal(batch["number"], number)
        np.testing.assert_allclose(
            batch["boxes"], number[:, None, None] / [[[1, 2, 3, 4]]], rtol=1e-6
        )
        np.testing.assert_array_equal(batch["map"], batch["image"][:, :1])
        assert batch["number"].dtype == np.int32 and batch["boxes"].dtype == np.float32
    stream.close()


def test_columns_change_no_draw():
    stream = make()
    plain = MixedStream(
        stores(0, 34)[0], rows(SIZES[0]), stores(100, 24)[0], rows(SIZES[1]), batch_size=16, seed=0
    )
    plain.set_mixture(np.array([0.5, 0.3, 0.2]), SHARE)
    for _ in range(3):
        left, right = next(stream), next(plain)
        for name in ("image", "label", "synthetic"):
            np.testing.assert_array_equal(left[name], right[name])
    stream.close()
    plain.close()


@pytest.mark.parametrize(("synthetic", "held"), [(True, (1, None)), (False, (1, 2))])
def test_a_column_that_one_side_lacks_is_refused(synthetic, held):
    pair = tuple(None if side is None else np.zeros(40, np.float32) for side in held)
    with pytest.raises(ValueError, match="column 'weight'"):
        make(synthetic, weight=pair)
