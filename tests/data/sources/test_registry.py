import numpy as np
import pytest

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import sources
from lt_jax.data.images import ImageError


def test_every_source_is_found_without_being_listed():
    with pytest.raises(ConfigError, match=r"got 'nope'.*busi.*digits.*folder.*ham10000.*isic2018"):
        sources.load(DataConfig(source="nope"))


def test_a_name_is_taken_once():
    sources.load(DataConfig(source="digits"))
    with pytest.raises(ValueError, match="two sources are registered as 'digits'"):
        sources.register("digits")(lambda data: None)


@pytest.mark.parametrize("root", ["", "/no/such/folder"])
@pytest.mark.parametrize("source", ["ham10000", "isic2018", "isic2019", "busi", "folder"])
def test_a_missing_root_is_named(source, root):
    with pytest.raises(ConfigError, match=r"config\.data\.root: got"):
        sources.load(DataConfig(source=source, root=root))


def test_file_sources_read_nothing_outside_their_root(tmp_path):
    (tmp_path / "inner" / "class").mkdir(parents=True)
    source = sources.FileSource(DataConfig(source="folder", root=str(tmp_path / "inner")))
    for locator in ("../secret.png", "class/../../secret.png", "/etc/passwd"):
        with pytest.raises(ValueError, match="leads out of"):
            source.decode(locator)


def test_digits_are_scikit_learns_scaled_to_bytes():
    from sklearn.datasets import load_digits

    source, truth = sources.load(DataConfig(source="digits")), load_digits()
    records = source.records()
    assert [record.label for record in records] == truth.target.tolist()
    assert len({record.group for record in records}) == len(records) == 1797
    decoded = np.stack([source.decode(record.image) for record in records[:50]])
    assert decoded.shape == (50, 8, 8, 1) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded[..., 0] / 255 * 16, truth.images[:50], atol=0.04)
    with pytest.raises(ImageError, match="takes 0000 to 1796"):
        source.decode("1797")


def test_classes_that_are_left_out_are_as_if_they_were_not():
    whole = sources.load(DataConfig(source="digits"))
    some = sources.load(DataConfig(source="digits", classes=("7", "2")))
    assert some.classes == ("7", "2") and some.name == "digits"
    ids = {label: {r.id for r in whole.records() if r.label == label} for label in (7, 2)}
    for label, old in enumerate((7, 2)):
        assert {r.id for r in some.records() if r.label == label} == ids[old]
    assert {r.label for r in some.records()} == {0, 1}
    first = some.records()[0]
    np.testing.assert_array_equal(some.decode(first.image), whole.decode(first.image))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("7", "x"), "no class 'x' in column 'label'"),
        (("7", "7"), "each class and each value once"),
        (("7", "odd=1,3,7"), "each class and each value once"),
        (("odd=1,,7",), 'takes "name" or "name=value,value"'),
        (("=1",), 'takes "name" or "name=value,value"'),
    ],
)
def test_classes_that_cannot_be_had_are_named(classes, message):
    with pytest.raises(ConfigError, match=rf"config\.data\.classes: .*{message}"):
        sources.load(DataConfig(source="digits", classes=classes))


def test_values_are_gathered_into_classes():
    whole = {record.id: record.label for record in sources.load(DataConfig()).records()}
    task = sources.load(DataConfig(classes=("odd = 1, 3", "zero=0")))
    records = task.records()
    assert task.classes == ("odd", "zero")
    assert {r.id for r in records} == {name for name, label in whole.items() if label in (0, 1, 3)}
    assert all(record.label == (whole[record.id] == 0) for record in records)


def table(tmp_path, column, values):
    """A folder source whose images have an attribute of these values."""
    for i in range(len(values)):
        (tmp_path / f"{i}.png").touch()
    rows = [f"{i}.png,a,{value}" for i, value in enumerate(values)]
    (tmp_path / "t.csv").write_text("\n".join([f"image,label,{column}", *rows]) + "\n")
    return {"source": "folder", "root": str(tmp_path), "csv": "t.csv", "label": column}


def test_a_column_becomes_the_label_and_is_no_attribute_any_more(tmp_path):
    data = table(tmp_path, "grade", ["10", "2", "", "2"])
    task = sources.load(DataConfig(**data))
    assert task.classes == ("2", "10")  # by size; what has no grade is left out
    assert [(r.id, r.label) for r in task.records()] == [("0.png", 1), ("1.png", 0), ("3.png", 0)]
    assert not any("grade" in record.attributes for record in task.records())
    low = sources.load(DataConfig(**data, classes=("low=2",)))
    assert [r.id for r in low.records()] == ["1.png", "3.png"]


def test_the_device_can_be_the_label():
    task = sources.load(DataConfig(source="phantom:4", image_size=8, label="device"))
    whole = {r.id: r.device for r in sources.load(DataConfig(source="phantom:4")).records()}
    assert {task.classes[r.label] for r in task.records()} == set(whole.values())
    assert all(task.classes[r.label] == whole[r.id] for r in task.records())
    assert all(record.device is None for record in task.records())


def test_a_column_that_is_not_there_is_named(tmp_path):
    data = table(tmp_path, "grade", ["1", "2"])
    with pytest.raises(ConfigError, match=r"config\.data\.label: no image has a 'node'; .*grade"):
        sources.load(DataConfig(**{**data, "label": "node"}))
