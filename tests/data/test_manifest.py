import dataclasses
import json

import numpy as np
import pytest

from lt_jax.data import manifest
from lt_jax.data.manifest import ManifestError, SplitManifest

SPLITS = ("train",) * 6 + ("policy_val", "val", "test", "test")


def make(**changes):
    n = 10
    columns = {
        "ids": tuple(f"i{i}" for i in range(n)),
        "images": tuple(f"x/{i}.png" for i in range(n)),
        "labels": np.array([0, 0, 0, 1, 1, 2, 0, 1, 2, 0], np.int32),
        "groups": tuple(f"g{i // 2}" if i < 6 else f"h{i}" for i in range(n)),
        "splits": SPLITS,
        "masks": (("m0.png", "m1.png"),) + ((),) * (n - 1),
        "boxes": (((0.1, 0.2, 1 / 3, 1.0), (0.0, 0.0, 0.5, 0.5)),) + ((),) * (n - 1),
        "devices": ("GE",) + (None,) * (n - 1),
        "attributes": ({"age": 61.5, "site": "größe", "sex": None},) + ({},) * (n - 1),
        "image_sha256": tuple(f"{i:064x}" for i in range(n)),
        "classes": ("nv", "mel", "df"),
        "protocol": {
            "source": "test",
            "groups": {"head_above": 2, "tail_below": 2, "by": "counts"},
        },
    }
    return SplitManifest(**(columns | changes))


def replace_at(row, value, column):
    return {column: (*(old := getattr(make(), column))[:row], value, *old[row + 1 :])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            replace_at(8, "g0", "groups"),
            "group 'g0' stands in two splits: 'i0' in train, 'i8' in te",
        ),
        (replace_at(4, "i2", "ids"), "id 'i2' stands twice"),
        (replace_at(4, "dev", "splits"), "id 'i4': split 'dev'"),
        ({"labels": np.array([0] * 9 + [3], np.int32)}, "id 'i9': label 3; takes 0 to 2"),
        ({"labels": np.array([-1] + [0] * 9, np.int32)}, "id 'i0': label -1"),
        ({"labels": np.array([0] * 9 + [-1], np.int32)}, "id 'i9': label -1"),
        (replace_at(3, ((0.5, 0.0, 0.5, 1.0),), "boxes"), "id 'i3': box"),
        (replace_at(3, ((0.6, 0.0, 0.5, 1.0),), "boxes"), "id 'i3': box"),
        (replace_at(3, ((0.1, 0.0, float("nan"), 1.0),), "boxes"), "id 'i3': box"),
        (replace_at(3, ((0.1, 0.0, float("inf"), 1.0),), "boxes"), "id 'i3': box"),
        ({"devices": (None,)}, "column devices has 1 rows"),
        ({"classes": ("nv", "mel", "nv")}, "class name stands twice"),
        ({"sha256": "0" * 64}, "altered"),
    ],
)
def test_the_constructor_refuses(changes, message):
    with pytest.raises(ManifestError, match=message):
        make(**changes)


def test_rows_counts_and_groups():
    m = make()
    assert len(m) == 10 and m.rows("test").tolist() == [8, 9] and m.rows("val").tolist() == [7]
    assert m.counts().tolist() == [3, 2, 1] and m.counts("test").tolist() == [1, 0, 1]
    assert m.groups_by_count(2, 2) == {"head": (0,), "medium": (1,), "tail": (2,)}
    assert m.groups_by_count() == {"head": (), "medium": (), "tail": (0, 1, 2)}
    assert m.groups_by_count(by="thirds") == {"head": (0,), "medium": (1,), "tail": (2,)}
    with pytest.raises(ManifestError, match="got split 'dev'"):
        m.rows("dev")


def test_every_class_is_in_one_group_even_where_thresholds_overlap():
    groups = make().groups_by_count(head_above=0, tail_below=100)
    assert sorted(sum(groups.values(), ())) == [0, 1, 2]


def test_the_hash_covers_content_and_neither_row_order_nor_places():
    m = make()
    order = np.random.default_rng(0).permutation(10)
    shuffled = {
        field.name: tuple(getattr(m, field.name)[i] for i in order)
        for field in dataclasses.fields(m)
        if field.name not in ("labels", "classes", "protocol", "sha256")
    }
    assert make(**shuffled, labels=m.labels[order]).sha256 == m.sha256
    assert make(images=("moved",) * 10, protocol={}).sha256 == m.sha256
    for changes in (
        {"labels": np.array([1, 0, 0, 1, 1, 2, 0, 1, 2, 0], np.int32)},
        {"labels": np.array([0, 0, 0, 1, 1, 2, 0, 1, 2, 1], np.int32)},
        {"classes": ("nv", "mel", "bkl")},
        replace_at(9, "val", "splits"), replace_at(0, "GF", "devices"), replace_at(0, (), "boxes"),
        replace_at(0, {"age": 61}, "attributes"), replace_at(9, "f" * 64, "image_sha256"),
        replace_at(9, "h99", "groups"), replace_at(9, "i99", "ids"),
    ):  # fmt: skip
        assert make(**changes).sha256 != m.sha256


def same(a, b):
    np.testing.assert_array_equal(a.labels, b.labels)
    for field in dataclasses.fields(SplitManifest):
        if field.name != "labels":
            assert getattr(a, field.name) == getattr(b, field.name), field.name


def test_parquet_and_jsonl_round_trip(tmp_path):
    m = make()
    m.save(tmp_path)
    m.save_jsonl(tmp_path / "m.jsonl")
    same(manifest.load(tmp_path), m)
    same(manifest.load(tmp_path / "m.jsonl"), m)
    header = json.loads((tmp_path / "manifest.json").read_text())
    assert header["counts"]["train"] == [3, 2, 1] and header["sha256"] == m.sha256
    assert header["groups"] == {"head": ["nv"], "medium": ["mel"], "tail": ["df"]}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "m.jsonl", "manifest.json", "manifest.parquet",
    ]  # fmt: skip


def test_an_altered_or_broken_manifest_is_refused(tmp_path):
    make().save_jsonl(tmp_path / "m.jsonl")
    text = (tmp_path / "m.jsonl").read_text()
    (tmp_path / "altered.jsonl").write_text(text.replace('"split": "val"', '"split": "test"'))
    with pytest.raises(ManifestError, match=r"altered\.jsonl.*altered"):
        manifest.load(tmp_path / "altered.jsonl")
    (tmp_path / "cut.jsonl").write_text(text[: len(text) // 2])
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("cut.jsonl", "empty.jsonl", "none.jsonl", "."):
        with pytest.raises(ManifestError, match="no readable manifest"):
            manifest.load(tmp_path / name)


@pytest.mark.parametrize("name", ["manifest.parquet", "manifest.json"])
def test_a_manifest_cut_short_or_with_a_flipped_bit_is_named_or_the_same(tmp_path, name):
    whole = make()
    whole.save(tmp_path)
    raw = (tmp_path / name).read_bytes()
    for part in (0.0, 0.3, 0.9, 0.99):
        (tmp_path / name).write_bytes(raw[: int(part * len(raw))])
        with pytest.raises(ManifestError, match=f"{tmp_path}: .*no readable manifest"):
            manifest.load(tmp_path)
    refused = 0
    for place in range(0, len(raw), max(len(raw) // 60, 1)):
        harmed = bytearray(raw)
        harmed[place] ^= 4
        (tmp_path / name).write_bytes(harmed)
        try:
            assert manifest.load(tmp_path).sha256 == whole.sha256
        except ManifestError as error:
            refused += str(tmp_path) in str(error)
    assert refused > 10


def test_a_broken_line_is_named_by_its_number(tmp_path):
    make().save_jsonl(tmp_path / "m.jsonl")
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    lines[2] = lines[2][:-5]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(ManifestError, match=r"m\.jsonl: no readable manifest .*line 3: "):
        manifest.load(tmp_path / "m.jsonl")


def test_test_labels_are_locked_and_each_opening_is_logged(tmp_path):
    m = make()
    locked = m.without_test_labels()
    assert locked.labels.tolist() == [0, 0, 0, 1, 1, 2, 0, 1, -1, -1]
    assert locked.sha256 == m.sha256 and locked.locked and not m.locked
    assert locked.counts().tolist() == m.counts().tolist()
    # Nor what stands beside a label: another task's, or the same in other words.
    near = dataclasses.replace(m, attributes=tuple({"grade": i} for i in range(10)), sha256="")
    shown = near.without_test_labels().attributes
    assert [*shown] == [*({"grade": i} for i in range(8)), {}, {}]
    log = tmp_path / "openings.jsonl"
    for refused in (
        lambda: locked.counts("test"), lambda: locked.open_test(log, "no"),
        lambda: locked.save(tmp_path), lambda: locked.save_jsonl(tmp_path / "m.jsonl"),
    ):  # fmt: skip
        with pytest.raises(ManifestError, match="test labels"):
            refused()
    assert not log.exists()
    for reason in ("report", "report again"):
        ids, labels = m.open_test(log, reason)
        assert ids == ("i8", "i9") and labels.tolist() == [2, 0]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["report", "report again"]
    assert all(line["manifest_sha256"] == m.sha256 and line["time"] for line in lines)


def test_test_labels_stay_locked_through_replace_and_labels_cannot_be_written():
    m = make()
    with pytest.raises(ValueError, match="read-only"):
        m.labels[0] = 1
    assert (dataclasses.replace(m.without_test_labels()).labels[8:] == -1).all()
