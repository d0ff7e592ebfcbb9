"""How work ends: every long loop after SIGTERM, and of two processes one with the other."""

import re
import signal
import time

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
from tests import processes

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


TWO = """
import hashlib, os, signal, time
from absl import flags
from lt_jax import command
from lt_jax.config import RuntimeConfig
from lt_jax.errors import UserError
from lt_jax.runtime import distributed, faults

def loop():
    print("working", flush=True)
    while True:
        faults.check("a loop")
        time.sleep(0.01)

def compute():
    print("working", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def run(kind):
    first = distributed.is_first()
    if kind == "polls":
        distributed.on_first(loop)
    elif kind == "computes":
        distributed.on_first(compute)
    elif kind == "refuses" and not first:
        raise UserError("what is wrong")
    elif kind == "breaks" and first:
        print(1 / 0)
    elif kind == "dies" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind in ("breaks", "dies"):
        time.sleep(60)
    distributed.barrier("never met")

def main(argv):
    with command.ending():
        command.use_devices(RuntimeConfig(host_timeout=20), command.workdir())
        run(argv[1])

command.start(main)
"""


@pytest.fixture
def two(tmp_path):
    """Starts two processes that work as `kind` says."""
    (tmp_path / "config.json").write_text("{}")
    files = (f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path}", "--grace=2")
    return lambda kind: processes.started(["-c", TWO, *files, kind], 2, tmp_path)


def _ended(running, folder):
    since = time.monotonic()
    codes = [process.wait(60) for process in running]
    assert time.monotonic() - since < 15 + 5  # host_timeout would add 20
    return codes, processes.outputs(folder, 2)


@pytest.mark.parametrize("kind, told", [("polls", "is begun anew"), ("computes", "after 2 s")])
def test_sigterm_to_one_is_heard_by_the_first_at_work_alone(two, tmp_path, kind, told):
    with two(kind) as running:
        while "working" not in processes.outputs(tmp_path, 2)[0]:
            assert running[0].poll() is None, processes.outputs(tmp_path, 2)
            time.sleep(0.1)
        running[1].send_signal(signal.SIGTERM)
        codes, said = _ended(running, tmp_path)
    assert codes == [faults.REQUEUE_EXIT_CODE] * 2, said
    assert told in said[0]


@pytest.mark.parametrize(
    "kind, codes, lines",
    [
        (
            "refuses",
            [1, 1],
            [
                "process 1 ended with an error (what is wrong); this process ends with it",
                "what is wrong",
            ],
        ),
        (
            "breaks",
            [1, 1],
            [
                "ZeroDivisionError: division by zero",
                "process 0 ended with an error (ZeroDivisionError: division by zero); this process "
                "ends with it",
            ],
        ),
        ("dies", [-signal.SIGKILL, 1], ["", "run the same command again"]),
    ],
)
def test_an_error_of_one_ends_the_other_and_both_say_why(two, tmp_path, kind, codes, lines):
    with two(kind) as running:
        found, said = _ended(running, tmp_path)
    assert found == codes, said
    for line, text in zip(lines, said, strict=True):
        # Gloo's threads print at any time, in the middle of a line, too.
        own = re.sub(r"\[Gloo\] Rank\s+\d+ is connected[^\n]*", "", text).rstrip()
        assert line in own.splitlines()[-1], text
    assert kind == "dies" or "stack trace" not in "".join(said)
    assert ("Traceback" in said[0]) == (kind == "breaks")
