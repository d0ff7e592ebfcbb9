"""Pictures that take networks: of a tiny run, from train and val alone, the same every time."""

import dataclasses
import json

import numpy as np
import pytest

from lt_jax import picturing, pipeline, reporting
from lt_jax.evaluate import metrics
from lt_jax.evaluate.images import maps
from tests.test_pipeline import tiny


def config(**evaluate):
    made = tiny()
    with made.unlocked():
        arms = made.classify.arms.to_dict()
        made.classify.arms = {name: arms[name] for name in ("ce", "synthetic_fill_to_head")}
        made.classify.arms.ce.network = "resnet"  # without attention
        made.classify.seeds = (0,)
        made.evaluate.update(pictures=("maps", "saliency", "strips"), **evaluate)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    run = pipeline.Pipeline(config(), workdir, command="test")
    run.run()
    return run


@pytest.fixture(scope="module")
def made(finished):
    context = finished.context()
    inputs = reporting.gather(context, "test")
    return context, inputs, picturing.compute(context, inputs)


def test_maps_are_of_train_val_and_accepted_images(made):
    context, _, pictures = made
    manifest, _ = context.data
    found = pictures.maps
    splits = dict(zip(manifest.ids, manifest.splits, strict=True))
    labels = dict(zip(manifest.ids, manifest.labels.tolist(), strict=True))
    for name, kind, label in zip(found.names, found.kinds, found.labels, strict=True):
        if maps.KINDS[kind] == "synthetic":
            assert name.startswith("pool ")
        else:
            assert splits[name] == maps.KINDS[kind] and labels[name] == label
    assert set(found.kinds.tolist()) == {0, 1, 2}
    for held in found.maps.values():
        assert held.places.shape == (len(found.names), 2) and np.isfinite(held.places).all()


def test_saliency_is_of_val_images_right_and_wrong(made):
    context, inputs, pictures = made
    manifest, images = context.data
    found = pictures.saliency
    assert found.arms[0] == ("ce", 0) and len(found.arms) in (1, 2)
    row_of = {name: row for row, name in enumerate(manifest.ids)}
    logits = inputs.arms[0].runs[0].val_logits
    by_id = dict(zip([manifest.ids[r] for r in manifest.rows("val")], logits, strict=True))
    for example in found.examples:
        row = row_of[example.name]
        assert manifest.splits[row] == "val" and manifest.labels[row] == example.label
        np.testing.assert_array_equal(example.image, images[np.array([row])][0])
        answer = example.answers[0]
        assert answer.predicted == by_id[example.name].argmax()
        expected = metrics.softmax(by_id[example.name][None])[0].max()
        np.testing.assert_allclose(answer.probability, expected)
        assert answer.rollout is None  # a ResNet
        total = answer.attribution.sum()
        np.testing.assert_allclose(total, answer.difference + answer.gap, atol=1e-6)
        assert abs(answer.gap) < 0.05 * max(abs(answer.difference), 0.1)
        for other in example.answers[1:]:
            np.testing.assert_allclose(other.rollout.sum(), 1.0, rtol=1e-5)


def test_examples_are_the_first_right_and_the_first_wrong_of_each_class():
    labels = np.array([0, 1, 0, 1, 0, 2])
    predicted = np.array([1, 1, 0, 1, 0, 2])
    assert picturing.examples(predicted, labels, np.array([2, 0, 1])).tolist() == [5, 2, 0, 1]
    assert picturing.examples(predicted, labels, np.array([3])).tolist() == []


def test_strips_are_of_the_rarest_classes_and_end_with_the_pool_s_image(made):
    context, _, pictures = made
    found = pictures.strips
    counts = context.data[0].counts("train")
    shown = [strip.label for strip in found.strips]
    accepted = np.flatnonzero(picturing._pool(context).counts())
    rarest = sorted(accepted.tolist(), key=lambda k: counts[k])
    assert shown == rarest[: picturing.STRIPS] and len(shown)
    assert (np.diff(found.log_snr) > 0).all()
    for strip in found.strips:
        assert strip.index % len(counts) == strip.label
        assert strip.estimates.shape == (len(found.log_snr), *strip.kept.shape)


def test_one_seed_makes_the_same_pictures_and_test_labels_have_no_say(made):
    context, inputs, pictures = made
    data = inputs.dataset
    other = dataclasses.replace(data, test_labels=data.test_labels[::-1].copy())
    again = picturing.compute(context, dataclasses.replace(inputs, dataset=other))
    for name, held in pictures.maps.maps.items():
        np.testing.assert_array_equal(held.places, again.maps.maps[name].places)
    for one, two in zip(pictures.saliency.examples, again.saliency.examples, strict=True):
        assert one.name == two.name
        np.testing.assert_array_equal(one.answers[0].attribution, two.answers[0].attribution)
    for one, two in zip(pictures.strips.strips, again.strips.strips, strict=True):
        np.testing.assert_array_equal(one.estimates, two.estimates)


def test_what_they_cost_is_in_the_ledger_and_the_report_reads_what_they_take(finished):
    report = json.loads((finished.workdir / "report.json").read_text())
    costs = report["pictures"]["costs"]
    assert set(costs) == {"maps", "saliency", "strips"}
    spec = finished.specs[-1]
    ledger = finished.store.ledger(spec)
    assert ledger.images == sum(cost["images"] for cost in costs.values()) > 0
    assert ledger.seconds > sum(cost["seconds"] for cost in costs.values())
    assert {"generator", "extractor"} <= set(spec.inputs)


def test_pictures_that_are_not_asked_for_cost_and_read_nothing(finished, made):
    without = pipeline.Pipeline(config(), finished.workdir)
    values = config()
    with values.unlocked():
        values.evaluate.pictures = ("saliency",)
    some = pipeline.Pipeline(values, finished.workdir)
    assert some.specs[-1].key != without.specs[-1].key
    assert not {"generator", "extractor"} & set(some.specs[-1].inputs)
    pictures = picturing.compute(some.context(), made[1])
    assert pictures.maps is None and pictures.strips is None
    assert pictures.saliency is not None and set(pictures.costs) == {"saliency"}


def test_features_that_are_not_finite_open_no_test_labels(finished, tmp_path, monkeypatch):
    real = picturing.Context.features

    def diverged(self, *arguments):
        return real(self, *arguments) * np.nan

    monkeypatch.setattr(picturing.Context, "features", diverged)
    log = finished.workdir / "test_openings.jsonl"
    before = log.read_text()
    with pytest.raises(maps.MapsError, match=r"synthetic; the first: 'pool \d+'"):
        reporting.report(tmp_path, finished.context())
    assert log.read_text() == before


def test_without_a_pool_or_val_there_is_nothing_to_show(made):
    context, inputs, _ = made
    specs = {name: spec for name, spec in context.specs.items() if name != "synthesize"}
    alone = dataclasses.replace(context, specs=specs)
    blind = dataclasses.replace(
        inputs,
        dataset=dataclasses.replace(inputs.dataset, val_labels=None),
        arms=tuple(
            dataclasses.replace(
                arm, runs=tuple(dataclasses.replace(r, val_logits=None) for r in arm.runs)
            )
            for arm in inputs.arms
        ),
    )
    pictures = picturing.compute(alone, blind)
    assert (pictures.maps, pictures.saliency, pictures.strips) == (None, None, None)
    assert not pictures.costs
