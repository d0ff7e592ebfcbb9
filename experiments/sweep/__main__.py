r"""Sweeps from the command line: run, look, put failed trials back, collect.

python -m experiments.sweep run --sweep=configs/sweeps/digits_recipe.py --out=runs/recipe
python -m experiments.sweep status --out=runs/recipe
python -m experiments.sweep retry --out=runs/recipe
python -m experiments.sweep collect --out=runs/recipe
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging

from lt_jax import command
from lt_jax.evaluate.statistics import tables
from lt_jax.runtime import faults
from lt_jax.sweep import collect as collect_lib
from lt_jax.sweep import definition, driver, jobs, search, states, trial
from lt_jax.sweep.states import Planned, State, SweepError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; a user's error is one line, SIGTERM (`run`: or Ctrl-C) ends it with 75."""
    logging.use_absl_handler()
    given = _parser().parse_args(argv)
    with command.ending(given.out):
        given.run(given)


@faults.saving_on_sigterm(ctrl_c=True)
def _run(given: argparse.Namespace) -> None:
    out = given.out
    sweep = definition.load(given.sweep)
    if given.search and sweep.search is None:
        raise SweepError(f"--search: {given.sweep} has no Search(space, objective, trials)")
    planned, source = [], None
    states.check_sweep(out, sweep)
    cache = states.cache_of(out, given.cache)
    if sweep.search is None:
        wanted = definition.trials(sweep)  # all are checked before anything is written
        with faults.lock(out):  # a sweep that is driven is not planned anew
            planned = [states.write(out, one, sweep.stages, cache) for one in wanted]
            states.add_to_order(out, [one.name for one in wanted])
    else:
        with faults.lock(out):
            source = search.Study(out, sweep, cache, given.search or search.SAMPLERS[0])
            planned = states.all_in(out)
    found = driver.run(out, planned, _executor(given), source, deaths=given.deaths)
    if source is not None and sweep.search is not None and (best := source.best()):
        print(f"best on {sweep.search.objective}: {best[1]:.4g} by trial {best[0]} (the best of "
              f"{len(found)} is flattered by being chosen)")  # fmt: skip
    _show(states.all_in(out), set(found))
    if any(one.state is State.FAILED for one in found.values()):
        sys.exit("lt_jax: some trials have failed; mend the cause, then `retry` and `run`")


def _executor(given: argparse.Namespace) -> jobs.Executor:
    if given.executor == "debug":
        return jobs.InProcess(lambda folder: trial.carry_out(folder, trial.run_pipeline))
    if given.executor == "local":
        return jobs.Local(given.out, given.workers, given.gpus)
    options: dict[str, Any] = {
        "timeout_min": given.time,
        "slurm_partition": given.partition,
        "gpus_per_node": given.gpus or None,
        "cpus_per_task": given.cpus,
        "mem_gb": given.mem,
        "slurm_signal_delay_s": given.warning,
    }
    known = {name: value for name, value in options.items() if value is not None}
    return jobs.Slurm(given.out, given.workers, known, given.slurm, queued=given.queued)


def _status(given: argparse.Namespace) -> None:
    _show(_wanted(given))


def _wanted(given: argparse.Namespace) -> list[Planned]:
    """The trials of a sweep's folder; of those that are named, if any."""
    found = states.all_in(given.out)
    if not found:
        raise SweepError(f"{given.out}: holds no trial; `run --sweep=FILE` plans them")
    names = {planned.name for planned in found}
    if given.sweep is not None and (sweep := definition.load(given.sweep)).search is None:
        names &= {one.name for one in definition.trials(sweep)}
    return [planned for planned in found if planned.name in names]


def _show(found: Sequence[Planned], only: set[str] | None = None) -> None:
    """A table of trials, the failed ones with their last error line."""
    found = [planned for planned in found if only is None or planned.name in only]
    status = {planned.name: states.status(planned.folder) for planned in found}
    rows = [
        (
            planned.name,
            str(status[planned.name].state),
            definition.words(planned.trial.overrides),
            status[planned.name].error[:120],
        )
        for planned in found
    ]
    print(tables.to_text(tables.Table(("Trial", "State", "Overrides", "Last error"), tuple(rows))))
    print(driver.counts(status))


def _retry(given: argparse.Namespace) -> None:
    wanted, back, used = _wanted(given), [], []
    for planned in wanted:
        state = states.status(planned.folder).state
        try:
            if state is State.FAILED and states.put_back(planned.folder):
                back.append(planned.name)
        except faults.WorkdirInUseError:  # since just now
            state = State.RUNNING
        if state is State.RUNNING:
            used.append(planned.name)
    print(f"{len(back)} of {len(wanted)} trials wait again{': ' if back else ''}{' '.join(back)}")
    if used:
        print(f"{len(used)} are in use and left alone: {' '.join(used)}")


def _collect(given: argparse.Namespace) -> None:
    trials = _wanted(given)
    collect_lib.collect(given.out, given.split, given.test, given.baseline, given.arm, trials)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("experiments.sweep", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True)

    def add(name: str, run: Any, needs_sweep: bool, about: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about)
        one.add_argument("--sweep", type=pathlib.Path, required=needs_sweep, help="its file")
        one.add_argument("--out", type=pathlib.Path, required=True, help="folder of the sweep")
        one.set_defaults(run=run)
        return one

    run = add("run", _run, True, "plan the trials and run those that wait, until all have ended")
    run.add_argument("--cache", type=pathlib.Path, help="artifacts that sweeps share; OUT/cache")
    run.add_argument("--executor", choices=("local", "slurm", "debug"), default="local")
    run.add_argument("--workers", type=int, default=2, help="trials at once")
    run.add_argument("--gpus", type=int, default=0, help="local: of the machine; Slurm: of a job")
    run.add_argument("--search", choices=search.SAMPLERS, help="of a sweep with a Search; tpe")
    run.add_argument("--deaths", type=int, default=driver.DEATHS, help="before a trial has failed")
    slurm = run.add_argument_group("Slurm")
    slurm.add_argument("--queued", type=int, default=jobs.SLURM_ARRAY, help="jobs in the queue at "
                       "once, for clusters that take no more; %(default)s")  # fmt: skip
    slurm.add_argument("--time", type=int, default=60, help="minutes of a job; then it is requeued")
    slurm.add_argument("--partition")
    slurm.add_argument("--cpus", type=int, help="of a job")
    slurm.add_argument("--mem", type=float, help="GB of a job")
    slurm.add_argument("--warning", type=int, default=90, help="seconds to save before the end")
    slurm.add_argument("--slurm", type=_pair, action="append", default=[], metavar="OPTION=VALUE",
                       help="any other option of sbatch, such as account=x")  # fmt: skip
    add("status", _status, False, "which trials wait, run, have failed, and with what, or are done")
    add("retry", _retry, False, "let failed trials wait again")
    gather = add("collect", _collect, False, "one table and one comparison of what is done")
    gather.add_argument("--split", choices=definition.SPLITS, default="val")
    gather.add_argument("--test", action="store_true", help="open the test labels, for --arm alone")
    gather.add_argument("--arm", action="append", default=[], metavar="NAME",
                        help="with --test: a chosen arm as the table names it")  # fmt: skip
    gather.add_argument("--baseline", default="", help="an arm as the table names it; the first")
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"got {text!r}; takes option=value")
    return name.replace("_", "-"), value


if __name__ == "__main__":
    main()
