"""The training loop on linear regression: interruptions change nothing, failures are named."""

import functools
import gc
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import OptimizerConfig, RuntimeConfig
from lt_jax.runtime import faults, files, ledger, loop, mesh, metrics, train_state, training
from lt_jax.runtime.job import Job

OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup_steps=3)
STEPS, FEATURES, BATCH = 23, 5, 16


class Rows:
    """Batch i is drawn from (seed, i); `seek` and `state` are all that a loader needs."""

    def __init__(self) -> None:
        self.next, self.closed, self.before = 0, False, lambda n: None

    def __next__(self) -> dict[str, np.ndarray]:
        self.before(self.next)
        rng = np.random.default_rng((1, self.next))
        x = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
        y = x @ np.arange(1, FEATURES + 1, dtype=np.float32)
        self.next += 1
        return {"x": x, "label": y}

    def seek(self, step: int, state) -> None:
        assert state is None or state == {"rows": [1, 2]}
        self.next = step

    def state(self):
        return {"rows": [1, 2]}

    def restrict(self, part: int, parts: int) -> None:
        assert (part, parts) == (0, 1)

    def describe(self, step: int) -> str:
        return f"rows of batch {step}"

    def close(self) -> None:
        self.closed = True


@functools.cache
def make_step(devices: int):
    """The jitted step, and a list that grows by one with every trace."""
    device_mesh = mesh.make_mesh(devices)
    optimizer = train_state.make_optimizer(OPTIMIZER, STEPS)
    traces = []

    def step(state, batch, key, context):
        traces.append(1)
        noise = 0.1 * jax.random.normal(key, batch["label"].shape)

        def loss(params):
            error = batch["x"] @ params["w"] - batch["label"] - noise
            return (error**2).mean() * context["scale"], {"bias": error.mean()}

        return train_state.update(state, optimizer, loss, 0.9)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    jitted = jax.jit(
        step,
        in_shardings=(whole, split, whole, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
    return jitted, traces


def fresh(device_mesh):
    optimizer = train_state.make_optimizer(OPTIMIZER, STEPS)
    state = train_state.create({"w": jnp.zeros(FEATURES)}, optimizer)
    return jax.device_put(state, mesh.replicated(device_mesh))


def train(
    folder,
    *,
    stream=None,
    devices: int = 2,
    scale: float = 1.0,
    rounds=(STEPS,),
    step=None,
    **runtime,
):
    """Trains, or goes on training, as the stages do; returns the state and the ledger."""
    device_mesh = mesh.make_mesh(devices)
    settings = RuntimeConfig(**{"log_every": 5, "checkpoint_every": 4, **runtime})

    def after(until, state, to):
        to.write(until, {"val_loss": float(state.params["w"].sum())})

    return training.train(
        training.Training(
            step=step or make_step(devices)[0],
            state=fresh(device_mesh),
            stream=stream or Rows(),
            key=jax.random.key(7),
            job=Job(folder, device_mesh, settings, {"stage": "toy", "seed": 3}),
            ends=rounds,
            batch=(BATCH, "batch_size"),
            before=lambda number: {"scale": np.float32(scale)},
            after=after,
        )
    )


def lines(folder) -> list[dict]:
    """The metrics without their one wall-clock value."""
    read = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "data_wait_fraction"} for line in read]


def assert_same(left, right) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    state, costs = train(folder, rounds=(11, STEPS))
    return state, lines(folder), costs


class _KillError(Exception):
    pass


def stop_at(step: int) -> Rows:
    stream = Rows()

    def kill(n: int) -> None:
        if n == step:
            raise _KillError

    stream.before = kill
    return stream


@pytest.mark.parametrize("stop", [0, 4, 5, 9, 11, 22])
def test_a_training_killed_and_resumed_equals_an_unbroken_one(tmp_path, unbroken, stop):
    state, written, costs = unbroken
    stream = stop_at(stop)
    with pytest.raises(_KillError):
        train(tmp_path, stream=stream, rounds=(11, STEPS))
    assert stream.closed
    resumed, resumed_costs = train(tmp_path, rounds=(11, STEPS))
    assert_same(resumed, state)
    assert lines(tmp_path) == written
    assert resumed_costs.images == costs.images == STEPS * BATCH
    assert resumed_costs.flops == costs.flops > 0


def test_many_kills_in_a_row(tmp_path, unbroken):
    for stop in (1, 2, 7, 13, 21):
        with pytest.raises(_KillError):
            train(tmp_path, stream=stop_at(stop), rounds=(11, STEPS))
    resumed, _ = train(tmp_path, rounds=(11, STEPS))
    assert_same(resumed, unbroken[0])
    assert lines(tmp_path) == unbroken[1]


def test_a_finished_training_is_not_trained_further(tmp_path, unbroken):
    train(tmp_path, rounds=(11, STEPS))
    before = (tmp_path / "metrics.jsonl").read_text()
    again, costs = train(tmp_path, rounds=(11, STEPS), stream=stop_at(STEPS))
    assert_same(again, unbroken[0])
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert costs.images == STEPS * BATCH


@pytest.fixture
def sigterm():
    with faults.saving_on_sigterm():
        yield
        faults._stop.clear()


@pytest.mark.parametrize("at", [2, 4, 10, 14, 22])
def test_sigterm_saves_the_step_at_hand_and_loses_no_line(tmp_path, unbroken, sigterm, at):
    """At 10 and 22 a round ends: its validation line comes first, then the stop."""
    stream = Rows()

    def send(n: int) -> None:
        if n == at:
            os.kill(os.getpid(), signal.SIGTERM)

    stream.before = send
    if at == STEPS - 1:  # all is done: nothing is left to stop
        train(tmp_path, stream=stream, rounds=(11, STEPS))
    else:
        with pytest.raises(faults.Preempted, match="toy 3, step"):
            train(tmp_path, stream=stream, rounds=(11, STEPS))
        assert stream.next == (at + 1 if at + 1 != 11 else 12)
    faults._stop.clear()
    resumed, _ = train(tmp_path, rounds=(11, STEPS))
    assert_same(resumed, unbroken[0])
    assert lines(tmp_path) == unbroken[1]


def test_metrics_are_means_over_all_steps_since_the_last_line(tmp_path):
    every, some = tmp_path / "every", tmp_path / "some"
    train(every, log_every=1)
    train(some, log_every=5)
    single = {line["step"]: line["loss"] for line in lines(every) if "loss" in line}
    assert sorted(single) == list(range(1, STEPS + 1))
    means = {line["step"]: line["loss"] for line in lines(some) if "loss" in line}
    assert sorted(means) == [5, 10, 15, 20, STEPS]
    start = 0
    for step, value in means.items():
        np.testing.assert_allclose(
            value, np.mean([single[n] for n in range(start + 1, step + 1)]), rtol=1e-12
        )
        start = step


def test_lines_carry_tags_and_the_file_is_json_lines(tmp_path):
    train(tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all({"step", "stage", "seed"} <= set(json.loads(line)) for line in text)


def test_the_number_of_devices_does_not_matter(tmp_path):
    one, _ = train(tmp_path / "one", devices=1)
    eight, _ = train(tmp_path / "eight", devices=8)
    np.testing.assert_allclose(one.params["w"], eight.params["w"], atol=1e-6)
    np.testing.assert_allclose(one.ema["w"], eight.ema["w"], atol=1e-6)


def test_it_trains(tmp_path):
    state, _ = train(tmp_path)
    losses = [line["loss"] for line in lines(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]
    assert int(state.step) == STEPS


def test_a_loss_that_is_not_finite_names_step_and_batch_and_is_never_saved(tmp_path):
    class Poisoned(Rows):
        def __next__(self):
            batch = super().__next__()
            if self.next - 1 == 6:
                batch["label"][3] = np.nan
            return batch

    stream = Poisoned()
    with pytest.raises(
        faults.NonFiniteError,
        match=r"toy 3: .*loss.* non-finite at step 6.*rows of batch 6; the checkpoint of step 6 is",
    ):
        train(tmp_path, stream=stream, checkpoint_every=1)
    with pytest.raises(faults.NonFiniteError, match=r"batch 6; no checkpoint is there, .* from 0"):
        train(tmp_path / "other", stream=Poisoned(), checkpoint_every=100)
    assert stream.closed
    resumed = Rows()  # from the last checkpoint before it
    seen = []
    resumed.before = seen.append
    state, _ = train(tmp_path, stream=resumed)
    assert seen[0] == 6
    assert np.isfinite(state.params["w"]).all()


def test_a_state_that_is_not_finite_is_never_saved_though_its_metrics_are(tmp_path):
    """Those of a step are computed before its update; its checkpoint came back in every rerun."""
    inner, _ = make_step(2)

    def step(state, batch, key, context):
        state, values = inner(state, batch, key, context)
        if int(state.step) == 8:  # where a checkpoint is due
            state = state.replace(params={"w": state.params["w"].at[2].set(jnp.inf)})
        return state, values

    step.lower = inner.lower
    told = r"toy 3, step 8: 1 arrays .*non-finite, \.params\['w'\] .* not saved"
    with pytest.raises(faults.NonFiniteError, match=told):
        train(tmp_path, step=step)
    seen = []
    stream = Rows()
    stream.before = seen.append
    state, _ = train(tmp_path, stream=stream)
    assert seen[0] == 4  # all steps from the checkpoint before, none left out
    whole, _ = train(tmp_path / "unbroken")
    assert_same(state, whole)


def test_waiting_for_data_is_measured(tmp_path):
    """As a part of the steps since the last line: compiling the step, restoring and validating
    once counted as time in which the loader was quick.
    """
    stream = Rows()
    stream.before = lambda n: time.sleep(0.03 if n < 15 else 0.0)
    inner, _ = make_step(2)
    calls = []

    def step(state, batch, key, context):
        if not calls:
            time.sleep(1.0)  # as if it were compiled
        calls.append(1)
        return inner(state, batch, key, context)

    step.lower = inner.lower
    _, costs = train(tmp_path, stream=stream, step=step)
    assert 15 * 0.03 <= costs.data_wait <= costs.seconds
    fractions = {
        line["step"]: line["data_wait_fraction"]
        for line in metrics.read(tmp_path / "metrics.jsonl")
        if "data_wait_fraction" in line
    }
    assert sorted(fractions) == [5, 10, 15, 20, STEPS]
    assert all(0 <= fraction <= 1 for fraction in fractions.values())
    assert fractions[5] > 0.2  # of all seconds so far it is 0.13 at most
    assert fractions[STEPS] < fractions[10]


def test_a_full_disk_ends_the_training_with_that_error_and_everything_closed(tmp_path):
    """Closing the metrics once failed again, in place of the first error and of what came after."""
    stream = Rows()

    def fill(n: int) -> None:
        if n == 3:
            writer = loops[0]._records[0].metrics
            writer._file.close()
            writer._file = open("/dev/full", "w")  # noqa: SIM115
            writer._files.enter_context(writer._file)

    stream.before = fill
    loops, bars = [], []
    opened = loop.Loop.__enter__

    class Bar(loop.progress.Progress):
        def __exit__(self, kind, error, trace):
            bars.append(kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "__enter__", lambda self: loops.append(self) or opened(self))
        patch.setattr(loop.progress, "Progress", Bar)
        with pytest.raises(files.DiskFullError, match="writing metrics") as caught:
            train(tmp_path, stream=stream)
    assert any("while closing" in note for note in caught.value.__notes__)
    assert stream.closed
    assert bars == [files.DiskFullError]
    assert loops[0]._records[0].metrics._file.closed


def test_an_error_of_closing_alone_is_raised(tmp_path):
    stream = Rows()

    def fail() -> None:
        raise OSError("lost")

    stream.close = fail
    with pytest.raises(OSError, match="lost"):
        train(tmp_path, stream=stream)


def test_the_step_is_traced_once_for_training_and_counting_of_any_number_of_trainings(tmp_path):
    step, traces = make_step.__wrapped__(2)
    _, first = train(tmp_path / "a", step=step)
    _, second = train(tmp_path / "b", step=step)
    assert len(traces) == 1
    assert first.flops == second.flops > 0


def test_flops_are_those_of_the_compiled_step(tmp_path):
    device_mesh = mesh.make_mesh(2)
    step, _ = make_step(2)
    _, costs = train(tmp_path)
    batch = mesh.put(next(Rows()), device_mesh)
    context = {"scale": np.float32(1)}
    one = ledger.flops(step, fresh(device_mesh), batch, jax.random.key(0), context)
    assert costs.flops == pytest.approx(STEPS * one)
    assert one > 4 * BATCH * FEATURES


def test_nothing_of_the_first_batch_is_kept(tmp_path):
    """The FLOP count is cached by shapes; it once kept the arrays that it was made with."""
    step, _ = make_step.__wrapped__(1)
    gc.collect()
    live = len(jax.live_arrays())
    train(tmp_path, step=step, devices=1)
    gc.collect()
    assert len(jax.live_arrays()) <= live
