"""Every long loop ends at its next round after SIGTERM, and does nothing of the kind before."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lt_jax.classify import predict
from lt_jax.config import DataConfig
from lt_jax.data import duplicates, prepare
from lt_jax.detect import predict as detect_predict
from lt_jax.detect.decode import Detections
from lt_jax.evaluate.images import cross_fitting, diversity, fidelity, umap
from lt_jax.evaluate.report import picture
from lt_jax.evaluate.statistics import resampling
from lt_jax.runtime import faults, mesh, spmd

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(40, 6))
LABELS = np.arange(40) % 2
ROWS = np.arange(4)
IMAGES = np.zeros((4, 8, 8, 1), np.uint8)


def _program(found):
    return spmd.jit_rows(lambda params, images: found, mesh.make_mesh(1))


def _classify():
    logits = np.zeros((2, 3), np.float32)
    predict.predict(_program((logits, logits)), {}, IMAGES, ROWS, 2)


def _detect():
    found = Detections(np.zeros((2, 1, 4)), np.zeros((2, 1)), np.zeros((2, 1), np.int32))
    detect_predict.predict(_program(found), {}, IMAGES, ROWS, 2)


def _prepare(folder):
    prepare.prepare(DataConfig(source="digits", image_size=8, channels=1), folder)


def _picture(folder):
    numbers = picture.Numbers(("a",), ((1,),))
    figure = Figure(figsize=(1, 1))
    FigureCanvasAgg(figure)
    picture.save([picture.Picture("one", "a picture", figure, numbers)], folder)


LOOPS = {
    "decoding and hashing": _prepare,
    "near duplicates": lambda _: duplicates.near_duplicates(RNG.random((9, 16, 16)), 0.01),
    "prediction": lambda _: _classify(),
    "detection": lambda _: _detect(),
    "bootstrap and permutations": lambda _: resampling.side_by_side(abs, [1, 2, 3]),
    "a single statistic": lambda _: resampling.side_by_side(abs, [1]),
    "a map": lambda _: umap.embed(FEATURES, 5, epochs=3),
    "fidelity": lambda _: fidelity.radii(FEATURES, 3),
    "diversity": lambda _: diversity.summarise(np.eye(40), np.arange(40), 10, 0),
    "cross-fitting": lambda _: cross_fitting.fit(FEATURES, LABELS == 1, np.arange(40), 2, 0),
    "figures": _picture,
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_ends_after_sigterm_and_not_before(tmp_path, monkeypatch, name):
    LOOPS[name](tmp_path)
    monkeypatch.setattr(faults, "stopping", lambda: True)
    with pytest.raises(faults.Preempted, match="is begun anew by the same command"):
        LOOPS[name](tmp_path)
