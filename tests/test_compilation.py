"""What is compiled ahead is what a run calls, and what has to be there for it."""

import jax
import pytest

from lt_jax import compilation, pipeline, policy_learning, synthesis
from lt_jax import config as config_lib
from lt_jax.config import ConfigError
from lt_jax.runtime import spmd, training
from tests.classify import test_population as population
from tests.test_pipeline import tiny

data, mixed = population.data, population.mixed  # the fixtures
ARMS = config_lib.arms(
    ce={},
    again={},
    half={"controller": "fixed_share", "share": 0.5},
    retrained={"second_stage": "crt", "second_stage_steps": 0.25},
    experts={"experts": 2},
)


class Called(Exception):
    """A program is called, with its text."""


@pytest.mark.parametrize("how", ["", "map", "devices"])
def test_the_step_that_is_lowered_is_the_one_that_is_called(mixed, tmp_path, monkeypatch, how):
    """Also of a population, and without a file where the training is going to be."""
    members = population.trainings(tmp_path / "ahead", mixed, range(2) if how else [1])
    text = training.lower(members, how).as_text()
    assert not [path for path in (tmp_path / "ahead").rglob("*") if path.is_file()]

    def call(program, *arguments):
        raise Called(program.lower(*arguments).as_text())

    monkeypatch.setattr(spmd.Program, "__call__", call)
    then = population.trainings(tmp_path / "then", mixed, range(2) if how else [1])
    with pytest.raises(Called) as called:
        training.train_together(then, how) if how else training.train(then[0])
    assert str(called.value) == text
    other = population.trainings(tmp_path / "other", mixed, [0])
    assert how or training.lower(other).as_text() == text  # controllers are no part of a step


def lines_of(run, monkeypatch, stages=("generator", "extractor", "synthesize", "classify")):
    """Nothing is compiled: what each program would be asked is."""
    seen = []
    made = compilation.Compiled(seconds=1.0, flops=2e9, memory=3 * 2**20)
    monkeypatch.setattr(compilation, "compiled", lambda program: seen.append(program) or made)
    return list(compilation.report(run, stages)), seen


def run_of(folder, runtime, arms=ARMS):
    config = tiny()
    with config.unlocked():
        config.classify.arms, config.classify.seeds = arms, (0, 1)
        config.runtime.update(runtime)
    run = pipeline.Pipeline(config, folder)
    run.run(["prepare"])
    return run


def test_each_recipe_is_compiled_once_and_what_lacks_its_inputs_is_named(tmp_path, monkeypatch):
    run = run_of(tmp_path, {})
    _, *lines = lines_of(run, monkeypatch)[0]
    assert [line[:48].rstrip() for line in lines] == [
        "generator",
        "extractor",
        "synthesize",
        "classify: again, half",
        "classify: experts",
        "classify: retrained",
        "classify: crt of retrained",
    ]
    assert lines[2].endswith("later: needs generator and extractor finished")
    assert all(line.endswith("2.00             3        1.0 s") for line in lines[3:])


def test_populations_are_compiled_in_their_sizes(tmp_path, monkeypatch):
    """Two of four need a pool, and there is none yet; arms of one recipe make up for each other."""
    arms = {**ARMS, "unlike": {**ARMS["ce"], "loss": "balanced_softmax"}}
    run = run_of(tmp_path, {"classifiers": 4, "population": "map"}, arms)
    lines, seen = lines_of(run, monkeypatch, ["classify"])
    assert lines[1:3] == [
        f"{'classify: again, half, 4 together':48s} later: needs synthesize finished",
        f"{'classify: experts, 2 together':48s}" + lines[2][48:],
    ]
    assert [program.name for program in seen] == [
        "classify: experts, 2 together",
        "classify: retrained, 2 together",
        "classify: unlike, 2 together",
        "classify: crt of retrained",
    ]


def test_what_the_first_of_a_population_lacks_is_named_though_the_last_lacks_nothing(
    tmp_path, monkeypatch
):
    arms = {"a_half": ARMS["half"], "ce": ARMS["ce"]}
    run = run_of(tmp_path, {"classifiers": 4, "population": "map"}, arms)
    lines, seen = lines_of(run, monkeypatch, ["classify"])
    assert lines[1:] == [
        f"{'classify: a_half, ce, 4 together':48s} later: needs synthesize finished"
    ]
    assert not seen


def test_a_program_is_measured_as_xla_does():
    program = compilation.Program(
        "product", lambda: jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((64, 64), "float32"))
    )
    made = compilation.compiled(program)
    assert made.flops == pytest.approx(2 * 64**3, rel=0.05)
    assert made.memory >= 2 * 64 * 64 * 4
    assert made.seconds > 0


def test_what_outgrows_a_device_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "_limit", lambda context: 2 * 2**20)
    lines, _ = lines_of(run_of(tmp_path, {}), monkeypatch, ["generator"])
    assert lines[1].endswith("more than the 2 MiB of a device: take smaller batches")


def test_nothing_is_compiled_of_what_is_not_prepared(tmp_path):
    with pytest.raises(ConfigError, match="prepare is not finished"):
        next(compilation.report(pipeline.Pipeline(tiny(), tmp_path), ["classify"]))


@pytest.fixture
def called(monkeypatch):
    """Texts of all programs that are called from here on."""
    texts, known = set(), set()

    def noting(call):
        def noted(program, *arguments):
            if id(program) not in known:
                known.add(id(program))
                texts.add(program.lower(*arguments).as_text())
            return call(program, *arguments)

        return noted

    class Update:
        def __init__(self, jitted):
            self.jitted, self.lower = jitted, jitted.lower

        def __call__(self, *arguments):
            return noting(lambda program, *own: self.jitted(*own))(self, *arguments)

    monkeypatch.setattr(spmd.Program, "__call__", noting(spmd.Program.__call__))
    monkeypatch.setattr(synthesis._Bound, "__call__", noting(synthesis._Bound.__call__))
    update = policy_learning._update
    monkeypatch.setattr(policy_learning, "_update", lambda *own: Update(update(*own)))
    return texts


@pytest.mark.slow
def test_every_program_is_one_that_its_stage_calls(tmp_path, called):
    config = tiny("phantom_detect")
    with config.unlocked():
        config.classify.arms = config_lib.arms(
            ce={},
            learned={"controller": "policy"},
            retrained={"second_stage": "crt", "second_stage_steps": 0.5},
        )
        config.classify.rounds = config.mixing.rounds
        config.synthesize.counts = (3,) * 6
        config.synthesize.selection.update(label_probability=0.0, scores=())
    run = pipeline.Pipeline(config, tmp_path)
    run.run(["prepare"])
    seen = []
    for stage in ("generator", "extractor", "synthesize", "mixing", "classify", "detect"):
        made = compilation.programs(run.selected([stage]), run.context())
        texts = {program.name: program.lower().as_text() for program in made}
        called.clear()
        run.run([stage])
        assert not [name for name, text in texts.items() if text not in called]
        seen += texts
    assert len(seen) > 7 and "classify: crt of retrained" in seen
