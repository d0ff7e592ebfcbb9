"""Strict surroundings for every test: shapes checked, ranks never promoted, eight CPU devices."""

import gc
import itertools
import json
import os
import pathlib
import tempfile

# Tests compile far more than they compute: without the backend's optimisations a run from an empty
# cache takes a third less processor time, one from a full cache as much as before.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import pytest
from jaxtyping import install_import_hook

from tests import typechecker

# Before the first import of lt_jax, so that every jaxtyping annotation in it is checked.
typechecker.lighten()
install_import_hook("lt_jax", "tests.typechecker.check")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Lowering is a fifth of the suite, and a tenth of that is to write down where operations come from.
jax.config.update("jax_traceback_in_locations_limit", 0)
# One a user: another's folder of that name cannot be written to.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"lt_jax_test_jax_cache_{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

_MAPS = pathlib.Path("/proc/self/maps")
_MOST_MAPS = 20_000


def pytest_addoption(parser):
    """Goldens are rewritten by hand only, so that a review shows every change."""
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/testdata")


def pytest_collection_modifyitems(items):
    """Tests that are run by hand take as long as they take."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "gpu", "slurm")):
            item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish():
    """The collector looks seldom, and never at what imports have made: a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture
def update_goldens(request):
    """Whether goldens are to be rewritten."""
    return request.config.getoption("--update-goldens")


@pytest.fixture
def getkey():
    """Fresh typed keys, the same ones in every run of a test."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(0), next(counter))


@pytest.fixture
def in_turn(monkeypatch):
    """Calls a function as the first of two processes, then as the second: what it returns to each.

    It is given the process's number; the second is told (`agree`) what the first has said.
    """
    from lt_jax.runtime import distributed  # after the hook above

    said = []

    def agree(value):
        if distributed.count() == 1:
            return value
        if distributed.is_first():
            said.append(json.dumps(value))
            return value
        return json.loads(said.pop(0))

    def call(function):
        found = []
        for process in range(2):
            monkeypatch.setattr(distributed, "_here", distributed._Here(process, 2))
            found.append(function(process))
        monkeypatch.setattr(distributed, "_here", distributed._Here())
        assert not said
        return found

    monkeypatch.setattr(distributed, "agree", agree)
    monkeypatch.setattr(distributed, "barrier", lambda name: None)
    return call


@pytest.fixture(autouse=True, scope="session")
def _coarse_figures():
    """To draw and pack charts is else a tenth of the suite."""
    from lt_jax.evaluate.report import figures  # after the hook above

    figures.DPI = 60


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Forgets compiled programs where there are many.

    XLA maps each one into memory several times, and Linux allows a process 65,530 maps: beyond, a
    worker that runs many modules dies of a segmentation fault in the middle of a compilation.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
