import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import sources
from lt_jax.data.images import ImageError
from lt_jax.data.sources import SourceError


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def prepare(folder, name, features, examples, version="1.0.0"):
    """Writes a tiny set in array_record format, as tfds itself would; its class stays unknown."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def generators(self, manager):
        return {split: iter(enumerate(rows)) for split, rows in examples.items()}

    body = {
        # tfds looks for the file of a class in a package by a library that it does not install.
        "VERSION": tfds.core.Version(version), "_info": info, "_split_generators": generators,
        "_generate_examples": None, "__module__": "__main__", "name": name,
    }  # fmt: skip
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)
    tfds.disable_progress_bar()
    builder(data_dir=folder, file_format="array_record").download_and_prepare()


def png(i):
    stream = io.BytesIO()
    Image.fromarray(pixels(i)).save(stream, "PNG")
    stream.seek(0)
    return stream


# A set of our own, that tfds has no code for, and one that it has.
@pytest.mark.parametrize(
    ("name", "version", "image", "label"),
    [("tiny_set", "1.0.0", "picture", "kind"), ("cifar10", "3.0.2", "image", "label")],
)
def test_a_prepared_set_is_read_without_tensorflow(tmp_path, name, version, image, label):
    features = {
        image: tfds.features.Image(shape=(8, 8, 3)),
        label: tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    extra = {"id": "x"} if name == "cifar10" else {}
    features |= {key: tfds.features.Text() for key in extra}
    rows = [{image: png(i), label: i % 2} | extra for i in range(9)]
    prepare(tmp_path, name, features, {"train": rows[:6], "test": rows[6:]}, version)
    source = sources.load(DataConfig(source=f"tfds:{name}", root=str(tmp_path)))
    records = source.records()
    assert source.classes == ("cat", "dog") and source.name == f"tfds:{name}"
    assert sorted(r.id for r in records) == sorted(
        [f"train:{i}" for i in range(6)] + [f"test:{i}" for i in range(3)]
    )
    assert {r.attributes["official_split"] for r in records} == {"train", "test"}
    # tfds shuffles what it writes: each image must still stand beside its own label.
    label_of = {pixels(i).tobytes(): i % 2 for i in range(9)}
    decoded = {source.decode(r.image).tobytes(): r.label for r in records}
    assert decoded == label_of
    for locator in ("train:6", "val:0", "train:x", "train"):
        with pytest.raises(ImageError):
            source.decode(locator)


def test_of_several_labels_the_one_called_label_counts(tmp_path):
    names = {"coarse_label": ["animal", "thing"], "label": ["cat", "dog", "cup"]}
    features = {key: tfds.features.ClassLabel(names=held) for key, held in names.items()}
    features["image"] = tfds.features.Image(shape=(8, 8, 3))
    rows = [{"image": png(i), "coarse_label": i // 2, "label": i} for i in range(3)]
    prepare(tmp_path, "two_labels", features, {"train": rows})
    source = sources.load(DataConfig(source="tfds:two_labels", root=str(tmp_path)))
    assert source.classes == ("cat", "dog", "cup")
    label_of = {pixels(i).tobytes(): i for i in range(3)}
    assert {source.decode(r.image).tobytes(): r.label for r in source.records()} == label_of


def test_a_set_without_one_label_is_refused(tmp_path):
    features = {"image": tfds.features.Image(shape=(8, 8, 3))}
    prepare(tmp_path, "no_label", features, {"train": [{"image": png(0)}]})
    with pytest.raises(SourceError, match="0 features of type ClassLabel among image"):
        sources.load(DataConfig(source="tfds:no_label", root=str(tmp_path)))


@pytest.mark.parametrize("left", [0.0, 0.5, 0.97])
def test_a_file_cut_short_is_named_by_its_first_lost_example(tmp_path, left):
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    rows = [{"image": png(i), "label": i % 2} for i in range(6)]
    prepare(tmp_path, "cut", features, {"train": rows})
    whole = sources.load(DataConfig(source="tfds:cut", root=str(tmp_path)))
    (path,) = tmp_path.rglob("*.array_record*")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(left * len(raw))])
    with pytest.raises(SourceError, match=r"tfds:cut: example train:0 cannot be read"):
        sources.load(DataConfig(source="tfds:cut", root=str(tmp_path))).records()
    del whole


@pytest.mark.parametrize("name", ["kaggle:x", "huggingface:mnist", "../x", "a/../b", "/tmp/x", ""])
def test_a_name_that_is_no_name_of_a_set_is_refused_before_tfds_sees_it(tmp_path, name):
    """Of another namespace, tfds would fetch a program and run it."""
    with pytest.raises(ConfigError, match=r"config\.data\.source: got 'tfds:.*code of their own"):
        sources.load(DataConfig(source=f"tfds:{name}", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["cifar10", "no_such_set_at_all"])
def test_a_set_that_is_not_prepared_says_how(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"tfds:{name}.*download_and_prepare"):
        sources.load(DataConfig(source=f"tfds:{name}", root=str(tmp_path)))
