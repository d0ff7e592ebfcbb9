"""Which images are shown: equal numbers of both kinds a class, nothing that tells beforehand."""

import json

import numpy as np
import pytest

from lt_jax.data.pool import ForeignPoolError, PoolError
from lt_jax.evaluate.turing import draw
from lt_jax.evaluate.turing.study import StudyError
from tests.evaluate.turing.making import ACCEPTED, CLASSES, VAL, pool, real, run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def inputs(workdir):
    return draw.open_inputs(workdir)


def test_each_class_has_as_many_real_as_synthetic_ones_and_all_are_what_the_key_says(inputs):
    drawn = draw.draw(inputs, 30)
    synthetic, labels = np.array(drawn.synthetic), np.array(drawn.labels)
    assert synthetic.sum() == 15
    for k in range(3):
        assert (synthetic & (labels == k)).sum() == (~synthetic & (labels == k)).sum()
    assert len(set(zip(drawn.synthetic, drawn.sources, strict=True))) == 30
    row_of = {name: row for row, name in enumerate(inputs.manifest.ids)}
    for image, made, label, source in zip(
        drawn.images, drawn.synthetic, drawn.labels, drawn.sources, strict=True
    ):
        if made:
            row = np.flatnonzero(inputs.pool.columns["index"] == int(source))
            assert inputs.pool.columns["verdict"][row] == ["accepted"]
            assert inputs.pool.columns["label"][row] == [label]
            np.testing.assert_array_equal(inputs.pool[row][0], image)
        else:
            row = row_of[source]
            assert (inputs.manifest.splits[row], inputs.manifest.labels[row]) == ("val", label)
            np.testing.assert_array_equal(inputs.images[np.array([row])][0], image)


def test_what_a_class_lacks_goes_to_the_others_and_is_told(inputs):
    drawn = draw.draw(inputs, 30)  # 5 a class, of the third there are 3 real ones
    assert [(c.name, c.shown) for c in drawn.counts] == list(zip(CLASSES, (6, 6, 3), strict=True))
    assert [(c.real, c.synthetic) for c in drawn.counts] == list(zip(VAL, ACCEPTED, strict=True))


@pytest.mark.parametrize(
    ("available", "total", "dealt"),
    [
        ([9, 9, 9], 9, [3, 3, 3]),
        ([9, 9, 9], 8, [3, 3, 2]),
        ([9, 1, 9], 9, [4, 1, 4]),
        ([0, 2, 50], 20, [0, 2, 18]),
        ([1, 1, 1], 20, [1, 1, 1]),
        ([5, 5], 0, [0, 0]),
    ],
)
def test_shares(available, total, dealt):
    assert draw.shares(np.array(available), total).tolist() == dealt


def test_shares_are_even_within_what_there_is():
    rng = np.random.default_rng(0)
    for _ in range(100):
        available, total = rng.integers(0, 12, 6), int(rng.integers(0, 60))
        dealt = draw.shares(available, total)
        assert (dealt <= available).all() and dealt.sum() == min(total, available.sum())
        short = dealt < available  # a class that could give more has the most, or one less
        assert not short.any() or dealt[short].min() >= dealt.max() - 1


def same(one, other) -> bool:
    return one.sources == other.sources and np.array_equal(one.images, other.images)


def test_the_seed_decides_the_draw(inputs):
    first, second, other = (draw.draw(inputs, 24, seed) for seed in (1, 1, 2))
    assert same(first, second)
    assert set(first.sources) != set(other.sources) and first.synthetic != other.synthetic


def test_a_guess_of_the_seed_does_not_tell_the_order(inputs, tmp_path):
    """Another pool with as many images in it, drawn with the same seed, has another order."""
    other = draw.open_inputs(run(tmp_path, seed=10))
    assert other.pool.counts().tolist() == inputs.pool.counts().tolist()
    assert draw.draw(other, 30).synthetic != draw.draw(inputs, 30).synthetic


def test_no_place_in_the_order_tells(inputs):
    """Over 200 seeds each place is synthetic half of the time, whatever its neighbour is."""
    kinds = np.array([draw.draw(inputs, 12, seed).synthetic for seed in range(200)])
    bound = 4 * np.sqrt(0.25 / 200)
    assert np.abs(kinds.mean(axis=0) - 0.5).max() < bound
    alike = (kinds[:, 1:] == kinds[:, :-1]).mean(axis=0)
    assert np.abs(alike - 5 / 11).max() < bound


def test_one_image_a_group(tmp_path):
    """Of the class's 20 val images all but two are of two lesions."""
    first = sum(-(-count // 2) for count in VAL)  # row of the first val image
    groups = {first + i: f"twin {i % 2}" for i in range(18)}
    inputs = draw.open_inputs(run(tmp_path, real={"groups": groups}))
    drawn = draw.draw(inputs, 26)
    shown = [inputs.manifest.groups[inputs.manifest.ids.index(s)] for s in _real(drawn)]
    assert len(set(shown)) == len(shown) == 13
    assert drawn.counts[0].shown == 4  # two of twins, two others
    assert drawn.left_out["of a group that is shown"] >= 16


def _real(drawn):
    return [s for s, made in zip(drawn.sources, drawn.synthetic, strict=True) if not made]


def test_one_image_a_source_and_none_of_its_group(tmp_path):
    """All synthetic images of the first class were painted into three train images."""
    sources = {i: f"ISIC_{i % 3:04d}" for i in range(ACCEPTED[0])}
    inputs = draw.open_inputs(run(tmp_path, sources=sources))
    drawn = draw.draw(inputs, 20, split="train")
    made = [int(s) % 3 for s, m, k in _rows(drawn) if m and k == 0]
    assert len(set(made)) == len(made) <= 3
    assert not {f"ISIC_{i:04d}" for i in made} & set(_real(drawn))


def _rows(drawn):
    return zip(drawn.sources, drawn.synthetic, drawn.labels, strict=True)


def test_copies_are_left_out(tmp_path):
    """Eleven of the class's twelve val images have the same pixels."""
    first = sum(-(-count // 2) for count in VAL) + VAL[0]
    copies = [(first + i, first) for i in range(11)]
    for name, protocol in (("off", {"mode": "off", "distance": 0.01}), ("on", None)):
        work = run(tmp_path / name, real={"copies": copies, "protocol": protocol})
        drawn = draw.draw(draw.open_inputs(work), 30)
        assert drawn.counts[1].shown == 2 and drawn.left_out["copies"] >= 10


def test_near_duplicates_are_left_out_where_the_manifest_looked_for_them(tmp_path):
    counts = {}
    for mode in ("move", "off"):
        work = run(tmp_path / mode, real={"protocol": {"mode": mode, "distance": 0.01}})
        images = np.load(work / "prepare" / "images.npy")
        first = sum(-(-count // 2) for count in VAL) + VAL[0]
        for i in range(11):  # a pixel apart
            images[first + i] = images[first]
            images[first + i, 0, 0] = i
        np.save(work / "prepare" / "images.npy", images)
        counts[mode] = draw.draw(draw.open_inputs(work), 30).counts[1].shown
    assert counts == {"move": 2, "off": 6}


@pytest.mark.parametrize("n", [0, -2, 1, 31])
def test_odd_numbers_are_refused(inputs, n):
    with pytest.raises(StudyError, match="takes an even number"):
        draw.draw(inputs, n)


def test_too_few_images_are_told_by_class(inputs):
    with pytest.raises(StudyError, match=r"got 300; there are 60 images at most.*3 real, 9 synth"):
        draw.draw(inputs, 300)
    assert len(draw.draw(inputs, 60).images) == 60


def test_an_empty_pool(tmp_path):
    with pytest.raises(StudyError, match="no accepted images"):
        draw.open_inputs(run(tmp_path, accepted=(0, 0, 0)))


def test_a_class_without_synthetic_images_is_not_shown(tmp_path):
    drawn = draw.draw(draw.open_inputs(run(tmp_path, accepted=(15, 0, 9))), 20)
    assert [c.shown for c in drawn.counts] == [7, 0, 3]


def test_a_pool_of_another_manifest_or_shape_is_refused(tmp_path):
    with pytest.raises(ForeignPoolError):
        draw.open_inputs(run(tmp_path / "foreign", sha256="b" * 64))
    with pytest.raises(StudyError, match=r"images are \(4, 4, 3\), those of .* \(8, 8, 3\)"):
        draw.open_inputs(run(tmp_path / "shape", side=4))


def test_where_the_folders_are(workdir, tmp_path):
    seen = draw.draw(draw.open_inputs(workdir), 12)
    for pool_, real_ in (
        (workdir / "synthesize", None),
        (workdir / "synthesize", workdir),
        (workdir, workdir / "prepare"),
    ):
        assert same(draw.draw(draw.open_inputs(pool_, real_), 12), seen)
    with pytest.raises(PoolError, match="no finished pool"):
        draw.open_inputs(tmp_path)
    manifest = real(tmp_path / "cache" / f"prepare-{'c' * 16}")
    pool(tmp_path / "cache" / "synthesize-1", manifest)
    with pytest.raises(StudyError, match="give the folder of the real images with --real"):
        draw.open_inputs(tmp_path / "cache" / "synthesize-1")
    mark = {"inputs": {"prepare": "c" * 64}}
    (tmp_path / "cache" / "synthesize-1" / "artifact.json").write_text(json.dumps(mark))
    assert same(draw.draw(draw.open_inputs(tmp_path / "cache" / "synthesize-1"), 12), seen)
    with pytest.raises(StudyError, match=r"neither artifact\.json nor images\.npy"):
        draw.open_inputs(workdir, tmp_path)


def test_test_images_are_used_only_once_the_opening_is_logged(tmp_path):
    work = run(tmp_path / "run")
    inputs = draw.open_inputs(work)
    draw.draw(inputs, 12)
    assert not inputs.log.exists()
    drawn = draw.draw(inputs, 12, split="test")
    (line,) = (work / "test_openings.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith("visual Turing test")
    assert json.loads(line)["manifest_sha256"] == inputs.manifest.sha256
    splits = {inputs.manifest.splits[inputs.manifest.ids.index(s)] for s in _real(drawn)}
    assert splits == {"test"}
