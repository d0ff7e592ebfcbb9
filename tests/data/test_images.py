import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from lt_jax.data import images


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_decode_returns_the_pixels_that_were_saved(tmp_path):
    gray, colour = noise(5, 7), noise(5, 7, 3)
    Image.fromarray(gray).save(tmp_path / "g.png")
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(gray > 127).save(tmp_path / "bits.png")
    Image.fromarray(np.dstack([colour, gray])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(images.decode(tmp_path / "g.png"), gray[..., None])
    np.testing.assert_array_equal(images.decode(tmp_path / "c.png"), colour)
    np.testing.assert_array_equal(images.decode(tmp_path / "deep.png"), gray[..., None])
    np.testing.assert_array_equal(
        images.decode(tmp_path / "bits.png"), np.where(gray > 127, 255, 0)[..., None]
    )
    np.testing.assert_array_equal(images.decode(tmp_path / "rgba.png"), colour)


def packed_tiff(pixels: np.ndarray) -> bytes:
    """A TIFF of 12 bits a pixel, which Pillow reads and cannot write."""
    data = int("".join(f"{value:012b}" for value in pixels.ravel()), 2)
    data = data.to_bytes(pixels.size * 12 // 8, "big")
    height, width = pixels.shape
    short, long = 3, 4
    tags = [(256, short, width), (257, short, height), (258, short, 12), (259, short, 1),
            (262, short, 1), (273, long, 8), (277, short, 1), (278, short, height),
            (279, long, len(data))]  # fmt: skip
    entries = [
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<HH" if kind == short else "<I", *value)
        for tag, kind, value in ((t, k, (v, 0) if k == short else (v,)) for t, k, v in tags)
    ]
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(tags)) + b"".join(entries) + struct.pack("<I", 0)


def test_gray_of_twelve_bits_is_scaled_where_the_file_says_so(tmp_path):
    """It once became almost black: 4095 was divided like 65535."""
    twelve = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    twelve[0, 0] = 4095
    expected = (twelve / 4095 * 255).round().astype(np.uint8)[..., None]
    (tmp_path / "a.pgm").write_bytes(b"P5\n8 8\n4095\n" + twelve.astype(">u2").tobytes())
    (tmp_path / "b.tif").write_bytes(packed_tiff(twelve))
    Image.fromarray(twelve).save(tmp_path / "c.tif", tiffinfo={281: 4095})
    for name in ("a.pgm", "b.tif", "c.tif"):
        np.testing.assert_allclose(images.decode(tmp_path / name).astype(int), expected, atol=1)
    (tmp_path / "dark.pgm").write_bytes(b"P5\n8 8\n65535\n" + twelve.astype(">u2").tobytes())
    assert images.decode(tmp_path / "dark.pgm").max() == 16  # so it was meant


@pytest.mark.parametrize("white", [1, 255, 4095])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_of_few_values_in_sixteen_bits_is_refused(tmp_path, suffix, white):
    path = tmp_path / f"deep{suffix}"
    Image.fromarray((noise(5, 7) / 255 * white).round().astype(np.uint16)).save(path)
    with pytest.raises(images.ImageError, match=r"deep\..*largest value is.*save it with 8 bits"):
        images.decode(path)
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(path)
    assert not images.decode(path).any()  # an empty mask


def test_gray_of_fractions_or_beyond_sixteen_bits_is_refused(tmp_path):
    for name, pixels in (("f.tif", np.float32(0.5)), ("i.tif", np.int32(70000))):
        Image.fromarray(np.full((5, 7), pixels)).save(tmp_path / name)
        with pytest.raises(images.ImageError, match=rf"{name}: pixels of type .*0\.\.65535"):
            images.decode(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_files_are_named_with_the_remedy(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(images.ImageError, match=rf"cut{suffix}.*on_bad_image=skip"):
        images.decode(path)


def test_a_file_that_is_no_image_or_missing_is_named(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(images.ImageError, match=r"text\.png.*not an image"):
        images.decode(tmp_path / "text.png")
    with pytest.raises(images.ImageError, match=r"none\.png: no such file"):
        images.decode(tmp_path / "none.png")


def test_resize_at_own_size_is_the_identity():
    for image in (noise(8, 8, 1), noise(8, 8, 3)):
        np.testing.assert_array_equal(images.resize(image, 8, image.shape[-1]), image)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_resize_takes_the_centre_square(shape):
    image = noise(*shape, 3)
    rows, columns = ((n - 6) // 2 for n in shape)
    expected = image[rows : rows + 6, columns : columns + 6]
    np.testing.assert_array_equal(images.resize(image, 6, 3), expected)


def test_resize_keeps_constants_means_and_channels():
    assert (images.resize(np.full((9, 7, 3), 77, np.uint8), 5, 3) == 77).all()
    assert (images.resize(np.full((9, 7, 1), 77, np.uint8), 5, 3) == 77).all()
    assert images.resize(noise(9, 7, 3), 5, 1).shape == (5, 5, 1)
    # A checkerboard aliases to black or white unless the filter covers all pixels.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(images.resize(board, 16, 1).astype(int) - 127).max() <= 20
    with pytest.raises(ValueError, match=r"config\.data\.channels: got 2"):
        images.resize(noise(8, 8, 1), 8, 2)


def test_masks_boxes_and_images_share_one_frame():
    """A white rectangle, its mask and its box come out of the crop at the same place."""
    image = np.zeros((40, 60, 1), np.uint8)
    image[8:20, 14:34] = 255
    mask = images.binary_mask(image, (40, 60), "m")
    np.testing.assert_array_equal(images.resize_mask(mask, 40), images.resize(image, 40, 1))
    box = images.mask_box(mask)
    np.testing.assert_allclose(box, (14 / 60, 8 / 40, 34 / 60, 20 / 40))
    (cropped,) = images.crop_boxes([box], 40, 60)
    np.testing.assert_allclose(cropped, (4 / 40, 8 / 40, 24 / 40, 20 / 40))
    np.testing.assert_allclose(cropped, images.mask_box(images.resize_mask(mask, 40)[..., 0] > 0))


def test_boxes_are_cut_at_the_square_and_dropped_outside_it():
    half, gone = (0.0, 0.25, 0.5, 0.75), (0.0, 0.0, 0.1, 1.0)
    ((x0, y0, x1, y1),) = images.crop_boxes([half, gone], 10, 20)
    np.testing.assert_allclose((x0, y0, x1, y1), (0.0, 0.25, 0.5, 0.75))
    for bad in ((0.5, 0, 0.5, 1), (0, 0, float("nan"), 1), (0.0, 0, 1.1, 1), (0.6, 0, 0.5, 1)):
        assert not images.is_box(bad)
    assert images.is_box((0.0, 0.0, 1.0, 1.0))


def test_masks_of_ones_and_of_255_mean_the_same():
    small = noise(6, 6, 1) % 2
    np.testing.assert_array_equal(
        images.binary_mask(small, (6, 6), "m"), images.binary_mask(small * 255, (6, 6), "m")
    )
    empty = images.binary_mask(np.zeros((6, 6, 1), np.uint8), (6, 6), "m")
    assert not empty.any() and images.mask_box(empty) is None


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(images.ImageError, match=r"a_mask\.png: mask of 7 x 6 pixels.*8 x 6"):
        images.binary_mask(np.zeros((6, 7, 1), np.uint8), (6, 8), "a_mask.png")


def test_both_stores_give_the_same_images(tmp_path):
    originals = [noise(12, 9, 3, seed=i) for i in range(5)]
    for i, image in enumerate(originals):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "x.npy", np.stack([images.resize(image, 6, 3) for image in originals]))
    stored = images.ArrayImages(tmp_path / "x.npy")
    read = images.FileImages(
        lambda name: images.decode(tmp_path / name), [f"{i}.png" for i in range(5)], 6, 3
    )
    assert len(stored) == len(read) == 5 and stored.shape == (5, 6, 6, 3)
    indices = np.array([4, 0, 0])
    np.testing.assert_array_equal(stored[indices], read[indices])
    assert not isinstance(stored[indices], np.memmap)


def test_a_file_that_has_gone_bad_is_named_with_its_row(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    store = images.FileImages(
        lambda name: images.decode(tmp_path / name), ["good.png", "bad.png"], 8, 3
    )
    with pytest.raises(images.ImageError, match=r"row 1 of the manifest: .*bad\.png: truncated"):
        store[np.array([0, 1])]


def test_the_stored_images_are_pickled_by_their_path(tmp_path, monkeypatch):
    """A memory map is pickled as a copy of the whole array, one for each worker process."""
    np.save(tmp_path / "x.npy", noise(50, 16, 16, 3))
    monkeypatch.chdir(tmp_path)
    stored = images.ArrayImages(type(tmp_path)("x.npy"))
    pickled = pickle.dumps(stored)
    assert len(pickled) < 1000
    monkeypatch.chdir(tmp_path.parent)
    rows = np.array([49, 0])
    np.testing.assert_array_equal(pickle.loads(pickled)[rows], stored[rows])
