"""A run on a disk that fills up again and again ends as an unbroken run does, bit for bit.

The workdir is a tmpfs of a megabyte, enlarged a little each time it is full, so that all kinds of
writes meet a full disk: each time the command must say so in a line, and go on when told again.
Needs leave to mount (root); minutes on two cores, thus `-m slow`.
"""

import contextlib
import os
import random
import subprocess

import pytest

from tests.test_resume import Run, assert_equal, leftovers, unbroken  # noqa: F401  (a fixture)


@contextlib.contextmanager
def disk(folder, kib):
    """A tmpfs of so many KiB at `folder`, and a function that sets its size."""
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options], capture_output=True, text=True, check=False)

    made = mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder))
    if made.returncode:
        pytest.skip(f"cannot mount a small disk here: {made.stderr.strip()}")
    try:
        yield lambda size: mount("-o", f"remount,size={size}k", str(folder))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_filled_again_and_again_equals_unbroken(unbroken):  # noqa: F811
    folder, whole, _ = unbroken
    rng = random.Random(int(os.environ.get("LT_JAX_RESUME_SEED", "0")))
    run = Run(folder, "on_a_small_disk")
    met = []
    kib = 600
    with disk(run.workdir, kib) as resize:
        while True:
            before = run.finished()
            read = len(run.said(None)) if met else 0
            code = run.start().wait()
            if not code:
                break
            told = run.said(None)[read:]
            assert code == 1 and "Traceback" not in told, told[-4000:]
            line = told.splitlines()[-1]
            assert line.startswith("lt_jax: ") and "no space left while writing" in line
            assert "run the same command again" in line
            now = run.finished()
            assert {s: now.get(s) for s in before} == before, "a finished stage was redone"
            met.append((run.unfinished(), line.partition("while writing ")[2].partition(" to ")[0]))
            kib += rng.randint(100, 1200)
            assert resize(kib).returncode == 0 and kib < 100_000
        print("\nfull at:", *met, sep="\n  ")
        assert len(met) >= 10 and len({what for _, what in met}) >= 4
        assert_equal(run, whole)
        assert leftovers(run.workdir) == []
