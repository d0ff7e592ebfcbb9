"""The probe for artefacts: images that are alike, a mark, the floor, small classes."""

import json

import numpy as np
import pytest

from lt_jax.evaluate.images import artefacts, cross_fitting
from lt_jax.evaluate.statistics import multiplicity

CLASSES = ("a", "b")


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """Two of them: what is tested here are the probe's kinds, not its fit."""
    monkeypatch.setattr(cross_fitting, "STRENGTHS", (1e-3, 1e-1))


def part(seed, n, mark=0.0, d=5, per_group=1):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2 * n, d))
    features[:, 0] += mark
    labels = np.repeat([0, 1], n)
    return artefacts.Part(features, labels, np.arange(2 * n) // per_group)


def test_images_of_one_distribution_are_not_told_apart():
    """Over sets: the interval of each probe and floor misses 1/2 no more often than it should."""
    missed, areas = 0, []
    for seed in range(3):
        sets = {name: part((seed, i), 40) for i, name in enumerate(artefacts_sets())}
        found = artefacts.probe(sets, CLASSES)
        for entry in (*found["classes"], found["overall"]):
            for name in ("probe", "floor"):
                areas.append(entry[name]["auroc"])
                low, high = entry[name]["ci95"]
                missed += not low <= 0.5 <= high
    assert abs(np.mean(areas) - 0.5) < 0.06
    assert missed <= 4  # of 18, which are not independent


def artefacts_sets():
    return ("synthetic", "held_out", "train")


def test_a_mark_is_found_and_an_extractor_that_knows_its_images_raises_the_floor():
    sets = {"synthetic": part(0, 50, mark=3.0), "held_out": part(1, 50), "train": part(2, 50, 1.5)}
    found = artefacts.probe(sets, CLASSES)
    for entry in (*found["classes"], found["overall"]):
        assert entry["probe"]["auroc"] > 0.9 and entry["probe"]["p"] < 1e-6
        assert 0.6 < entry["floor"]["auroc"] < entry["probe"]["auroc"]
    for name in ("probe", "floor"):
        own = [entry[name] for entry in found["classes"]]
        assert [e["p_holm"] for e in own] == multiplicity.holm([e["p"] for e in own])
    assert found["overall"]["probe"]["p_holm"] is None
    assert found["overall"]["probe"]["n_positive"] == found["overall"]["probe"]["n_negative"] == 100
    json.dumps(found, allow_nan=False)


def test_both_kinds_are_as_many_and_no_more_than_asked():
    sets = {"synthetic": part(0, 90), "held_out": part(1, 30), "train": part(2, 60)}
    entry = artefacts.probe(sets, CLASSES, most=20)["classes"][0]
    assert entry["probe"]["n_positive"] == entry["probe"]["n_negative"] == 20
    assert (entry["n_synthetic"], entry["n_held_out"], entry["n_train"]) == (90, 30, 60)


def test_classes_of_few_groups_and_an_empty_pool_have_reasons():
    held = part(1, 30, per_group=5)  # six patients a class
    sets = {"synthetic": part(0, 30), "held_out": held, "train": part(2, 30)}
    entry = artefacts.probe(sets, CLASSES)["classes"][0]
    assert entry["probe"] is None and "30 and 6 groups" in entry["reasons"]["probe"]
    nothing = part(0, 0)
    sets = {"synthetic": nothing, "held_out": part(1, 30), "train": part(2, 30)}
    found = artefacts.probe(sets, CLASSES)
    assert found["overall"]["probe"] is None and found["overall"]["floor"] is not None
    assert "no images" in found["classes"][1]["reasons"]["probe"]


def test_bad_features_are_refused():
    sets = {"synthetic": part(0, 20), "held_out": part(1, 20), "train": part(2, 20)}
    sets["synthetic"].features[4, 2] = np.inf
    with pytest.raises(artefacts.ProbeError, match="row 4"):
        artefacts.probe(sets, CLASSES)
    sets["synthetic"] = part(0, 20, d=3)
    with pytest.raises(artefacts.ProbeError, match="dimensions"):
        artefacts.probe(sets, CLASSES)
