"""The pool's command line: numbers and pictures, an export that others read, damage found."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lt_jax.data.pool import GATES, PoolWriter, open_pool, pictures, summary
from lt_jax.data.pool.__main__ import main
from lt_jax.data.pool.export import folder_names
from lt_jax.data.pool.schema import judgements
from tests.data.pool.making import INFO, columns, pixels, write

CLASSES = ("melanoma", "[b]../old$", "never made")
N = 60  # candidates of each of the first two classes


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A pool of gates that fail in every combination, some without an image; its folder."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(1)
    failures = rng.random((2 * N, 3)) < 0.25
    index = np.arange(2 * N)
    told = {
        **{name: [column[0]] * (2 * N) for name, column in columns([0]).items()},
        "index": index,
        "label": index % 2,
        "score": np.where(failures[:, 0], 1.1, 0.4) + 0.1 * rng.random(2 * N) + index % 2,
        "label_probability": np.where(failures[:, 1], 0.0, 0.5) + 0.1 * rng.random(2 * N),
        "ms_ssim": np.where(failures[:, 2], 0.8, 0.3) + 0.1 * rng.random(2 * N),
        "cosine": np.where(index % 2, np.nan, rng.random(2 * N)),
        **judgements(failures),
    }
    kept = np.flatnonzero(~failures.any(axis=1) | (index < 40))
    images = rng.integers(0, 256, (len(kept), 8, 8, 1), np.uint8)
    info = dataclasses.replace(
        INFO,
        classes=CLASSES,
        thresholds=(1.0, 2.0, 1.5),
        cosine_thresholds=(),
        ms_ssim_thresholds=(0.5, 0.5, 0.5),
    )
    with PoolWriter(folder, info) as writer:
        writer.write(0, images, told, kept)
        writer.finish(np.array([5, N, 0]))
    return folder


@pytest.fixture
def pool(tmp_path):
    """The folder of a small pool, for damage."""
    write(tmp_path / "pool", [[0, 1, 2], [3, 4, 5], [6, 7]], (2, 4))
    return tmp_path / "pool"


def fails(*arguments) -> str:
    """The line with which a command ends that cannot do its work."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return str(stop.value.code)


def numbers(cells) -> list[int]:
    return [int(cell.split()[0]) for cell in cells]


def test_every_candidate_is_counted_once_by_verdict_and_once_a_gate(large):
    pool = open_pool(large)
    failed = np.array([[g in f.split(",") for g in GATES] for f in pool.columns["failed"]])
    counts = summary.got(pool).rows
    for k, row in enumerate(counts[:3]):
        wanted, got, missing, candidates, *verdicts = numbers(row[1:])
        assert candidates == sum(verdicts) == (pool.columns["label"] == k).sum()
        assert got == verdicts[0] == len(pool.rows(k))
        assert missing == wanted - got
    assert numbers(counts[3][1:]) == np.sum([numbers(r[1:]) for r in counts[:3]], axis=0).tolist()
    for k, row in enumerate(summary.gates(pool).rows[:3]):
        own = failed[pool.columns["label"] == k]
        several = int((own.sum(axis=1) > 1).sum())
        assert numbers(row[1:]) == [len(own), *own.sum(axis=0).tolist(), several]
    assert counts[0][5] == f"5 ({100 * 5 / N:.0f}%)"


def test_quantiles_are_numpys_over_what_was_measured(large):
    pool = open_pool(large)
    first, second, third = summary.quantiles(pool, "score").rows
    own = pool.columns["score"][pool.columns["label"] == 0]
    for cell, q in zip(first[2:-1], summary.QUANTILES, strict=True):
        assert float(cell) == pytest.approx(np.quantile(own, q), rel=1e-3, abs=1e-4)
    assert (first[1], first[-1], second[-1]) == (str(N), "1", "2")
    assert third[1:3] == ("0", "-")
    assert [row[1] for row in summary.quantiles(pool, "cosine").rows] == [str(N), "0", "0"]
    assert summary.quantiles(pool, "cosine").rows[0][-1] == "off"


def test_inspect_prints_tables_reasons_and_names_as_they_are(large, capsys):
    main(["inspect", str(large)])
    out = capsys.readouterr().out
    for text in (
        *CLASSES,
        "Gates failed",
        "failed several",
        "Quantiles: ms_ssim",
        "ddim, 20 steps",
    ):
        assert text in out
    (reason,) = (line for line in out.splitlines() if "missing: " in line)
    assert reason.startswith("[b]../old$: ") and f"spent after {N} candidates: " in reason
    assert max(map(len, out.splitlines())) < 140


def test_inspect_draws_every_class_that_has_candidates(large, tmp_path):
    out = tmp_path / "new" / "pictures"
    main(["inspect", str(large), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        "b_.._old_histograms.png", "b_.._old_samples.png",
        "melanoma_histograms.png", "melanoma_samples.png",
    ]  # fmt: skip
    for path in out.iterdir():
        assert np.asarray(Image.open(path)).std() > 5


def test_pictures_show_what_was_measured_and_kept(large):
    pool = open_pool(large)
    named = [[axes.get_xlabel() for axes in pictures.histograms(pool, k).axes] for k in (0, 1)]
    assert named == [
        ["score", "label_probability", "cosine", "ms_ssim"],
        ["score", "label_probability", "ms_ssim"],
    ]
    bars = pictures.histograms(pool, 0).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == N
    tiles = [axes for axes in pictures.samples(pool, 0).axes if axes.images]
    own, failed = pool.columns["label"] == 0, pool.columns["failed"] != ""
    kept = pool.with_image(np.flatnonzero(own & failed))
    assert 0 < len(kept) < (own & failed).sum()
    room = pictures.ROWS * pictures.COLUMNS
    assert len(tiles) == min((own & ~failed).sum(), room) + min(len(kept), room)


def test_a_class_without_images_has_pictures(tmp_path):
    write(tmp_path, [[3]], keep_rejected=False)
    pool = open_pool(tmp_path)
    for draw in (pictures.histograms, pictures.samples):
        draw(pool, 0).savefig(io.BytesIO())


def test_export_writes_the_pools_own_files_and_all_columns(pool, tmp_path, capsys):
    out = tmp_path / "out"
    main(["export", str(pool), str(out)])
    assert "5 records, 5 images" in capsys.readouterr().out
    reader = open_pool(pool)
    with (out / "pool.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    accepted = np.flatnonzero(reader.columns["verdict"] == "accepted")
    assert [int(row["index"]) for row in rows] == accepted.tolist()
    assert set(rows[0]) == {"file", "class", *reader.table.column_names}
    for row, at in zip(rows, accepted, strict=True):
        assert (out / row["file"]).read_bytes() == reader.record(int(at))
        assert row["file"] == f"images/{row['class']}/{at:08d}.png"
        assert row["conditions"] == f'{{"source": "image {at}"}}'
        assert np.float32(row["score"]) == reader.columns["score"][at]
    images = sorted(path for path in out.rglob("*.png"))
    assert len(images) == len(rows)
    picture = np.asarray(Image.open(out / rows[0]["file"]))
    np.testing.assert_array_equal(picture, pixels()[accepted[0]])


def test_export_of_all_keeps_verdicts_apart_and_lists_what_has_no_image(large, tmp_path, capsys):
    out = tmp_path / "out"
    main(["export", str(large), str(out), "--verdict", "all"])
    reader = open_pool(large)
    with (out / "pool.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [bool(row["file"]) for row in rows] == (reader.columns["shard"] >= 0).tolist()
    for row in rows:
        name = {"melanoma": "melanoma", "[b]../old$": "b_.._old"}[row["class"]]
        assert not row["file"] or row["file"].startswith(f"images/{row['verdict']}/{name}/")
    shown = sum(bool(row["file"]) for row in rows)
    assert f"{2 * N} records, {shown} images" in capsys.readouterr().out


def test_export_writes_nowhere_but_below_its_folder_whatever_the_table_says(pool, tmp_path):
    """A verdict names a folder of `export --verdict all`."""
    altered(pool / TABLE, "verdict", 3, "../../../out_of_it")
    told = fails("export", pool, tmp_path / "out", "--verdict", "all")
    assert "unknown verdict '../../../out_of_it'" in told
    assert not list(tmp_path.rglob("out_of_it*")) and not (tmp_path / "out").exists()


def test_a_killed_export_is_repeated(pool, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        main(["export", str(pool), str(out)])
    first, second, *_ = sorted(killed.rglob("*.png"))
    first.write_bytes(first.read_bytes()[:20])
    second.unlink()
    (killed / "pool.csv").unlink()
    (killed / ".pool.csv.12.partial").write_text("half")
    main(["export", str(pool), str(killed)])
    for path in whole.rglob("*.*"):
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_export_leaves_other_folders_alone(pool, large, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert "holds something else" in fails("export", pool, out)
    (out / "export.json").write_text('{"mine": 1}')
    assert "holds something else" in fails("export", pool, out)
    assert "is a file" in fails("export", pool, out / "thesis.txt")
    assert "holds something else" in fails("export", pool, pool)
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "thesis.txt"]
    other = tmp_path / "other"
    main(["export", str(pool), str(other)])
    assert "holds something else" in fails("export", large, other)
    assert "holds something else" in fails("export", pool, other, "--verdict", "ood")
    moved = tmp_path / "moved"
    shutil.copytree(pool, moved)
    main(["export", str(moved), str(other)])  # the same records


@pytest.mark.parametrize(
    "classes, names",
    [
        (("nevus", "actinic keratosis (AK)"), ("nevus", "actinic_keratosis_AK")),
        (("a/b", "a?b", "c"), ("0_a_b", "1_a_b", "2_c")),
        (("A", "a"), ("0_A", "1_a")),
        (("..", "/etc"), ("0", "1_etc")),
    ],
)
def test_class_names_become_file_names(classes, names):
    assert folder_names(classes) == names


def test_verify_of_an_intact_pool(pool, large, capsys):
    main(["verify", str(pool)])
    assert capsys.readouterr().out == "8 records, all intact\n"
    main(["verify", str(large)])
    assert capsys.readouterr().out == f"{2 * N} records, all intact\n"


@pytest.mark.parametrize("parts", [[], [[3]]])
def test_verify_of_a_pool_without_an_image(tmp_path, capsys, parts):
    write(tmp_path / "pool", parts, keep_rejected=False)
    main(["verify", str(tmp_path / "pool")])
    assert capsys.readouterr().out == f"{len(parts)} records, all intact\n"


def altered(path, name, row, value):
    """Writes one cell of a table."""
    table = pq.read_table(path)
    cells = table[name].to_pylist()
    cells[row] = value
    at = table.schema.get_field_index(name)
    pq.write_table(
        table.set_column(at, table.schema.field(at), pa.array(cells, table[name].type)), path
    )


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"IDAT") + 20] ^= 1
    path.write_bytes(raw)


def outcome(path, name, value):
    told = json.loads(path.read_text())
    told["outcomes"][0][name] = value
    path.write_text(json.dumps(told))


def limit(path, name, value):
    told = json.loads(path.read_text())
    told[name][0] = value
    path.write_text(json.dumps(told))


SHARD = "shards/00001.array_record"
TABLE, PART = "pool.parquet", "parts/00001.parquet"


@pytest.mark.parametrize(
    "harm, found",
    [
        (lambda p: flip(p / SHARD), f"{SHARD}: record 2 (index 5) cannot be read"),
        (lambda p: (p / SHARD).unlink(), f"{SHARD}: missing: 3 records are lost, of index 3 to 5"),
        (
            lambda p: (p / SHARD).write_bytes(b""),
            f"{SHARD}: cannot be read: 3 records are lost, of",
        ),
        (
            lambda p: shutil.copy(p / "shards/00000.array_record", p / SHARD),
            f"{SHARD}: record 0 (index 3): sha256 does not match",
        ),
        (
            lambda p: shutil.copy(p / "shards/00002.array_record", p / SHARD),
            f"{SHARD}: holds 2 records, pool.parquet points to 3",
        ),
        (
            lambda p: shutil.copy(p / SHARD, p / "shards/00009.array_record"),
            "shards/00009.array_record: no row of pool.parquet points to it",
        ),
        (lambda p: altered(p / TABLE, "index", 4, 5), "index 5 stands more than once"),
        (lambda p: altered(p / TABLE, "seed", 4, 5), "column seed: 1 rows differ from pool.json"),
        (lambda p: altered(p / TABLE, "label", 4, 2), "index 4: its label is no class"),
        (lambda p: altered(p / TABLE, "score", 4, 9.0), "index 4: score is not what its part says"),
        (lambda p: altered(p / TABLE, "score", 4, None), "column score: 1 rows are empty"),
        (lambda p: altered(p / TABLE, "cosine", 7, 0.1), "index 7: cosine is not what its part"),
        (lambda p: altered(p / TABLE, "verdict", 0, "surplus"), "pool.json: class first: says"),
        (lambda p: altered(p / TABLE, "verdict", 0, "ood"), "index 0: its verdict is not that of"),
        (lambda p: altered(p / TABLE, "verdict", 3, "accepted"), "index 3: its verdict is not"),
        (
            lambda p: altered(p / TABLE, "score", 4, 9.0),
            "index 4: failed '', verdict surplus, but by its values and the gates of pool.json it "
            "failed 'ood', verdict ood",
        ),
        (lambda p: altered(p / TABLE, "ms_ssim", 1, 0.6), "it failed 'memorised', verdict mem"),
        (lambda p: altered(p / TABLE, "cosine", 0, 0.95), "index 0: failed '', verdict accepted"),
        (lambda p: altered(p / TABLE, "label_probability", 2, 0.0), "it failed 'label', verdict l"),
        (lambda p: altered(p / TABLE, "ms_ssim", 3, 0.7), "index 3: failed 'ood,memorised', verd"),
        (lambda p: limit(p / "pool.json", "thresholds", 0.4), "index 4: failed '', verdict surplu"),
        (lambda p: limit(p / "pool.json", "thresholds", 3.0), "failed 'memorised', verdict memor"),
        (lambda p: altered(p / TABLE, "shard", 0, -1), "index 0: it is accepted, but has no image"),
        (lambda p: altered(p / PART, "sha256", 1, "0"), "index 4: sha256 is not what its part"),
        (lambda p: (p / PART).write_bytes(b"PAR1"), "00001.parquet: no readable table"),
        (lambda p: (p / PART).unlink(), "parts: 00001.parquet is missing before 00002.parquet"),
        (lambda p: (p / "parts/00002.parquet").unlink(), "parts: 6 rows in 2 parts, 8 in pool"),
        (
            lambda p: pq.write_table(pq.read_table(p / PART).drop_columns("nearest"), p / PART),
            "00001.parquet: the table lacks nearest",
        ),
        (lambda p: outcome(p / "pool.json", "generated", 9), "pool.json: class first: says"),
    ],
)
def test_verify_finds_damage_and_says_where(pool, capsys, harm, found):
    harm(pool)
    assert "problems among 8 records" in fails("verify", pool)
    assert found in capsys.readouterr().out


def test_verify_reads_on_behind_the_first_problem(pool, capsys):
    flip(pool / "shards/00000.array_record")
    (pool / "shards/00002.array_record").unlink()
    assert fails("verify", pool).endswith("2 problems among 8 records")
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["export", "out"]])
def test_what_is_no_pool_is_told_in_a_line(tmp_path, pool, command):
    name, *more = command
    more = [tmp_path / path for path in more]
    assert "no such folder" in fails(name, tmp_path / "nowhere", *more)
    assert "no finished pool" in fails(name, tmp_path, *more)
    path = pool / TABLE
    pq.write_table(pq.read_table(path).drop_columns("failed"), path)
    assert "lacks failed" in fails(name, pool, *more)
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_ends_inspect_and_export(pool, tmp_path):
    flip(pool / "shards/00000.array_record")
    flip(pool / "shards/00001.array_record")
    for arguments in (("export", pool, tmp_path / "a"), ("inspect", pool, "--out", tmp_path / "b")):
        assert "0000" in fails(*arguments)
    assert not (tmp_path / "a" / "pool.csv").exists()  # it comes last
