"""What every command line of a run shares: its flags, their parser, how it ends.

Flags are defined when a command line starts, not when its module is imported: absl has one set of
names for the whole process.
"""

import contextlib
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lt_jax.config import Config, ConfigError, RuntimeConfig, json_file
from lt_jax.errors import UserError
from lt_jax.runtime import distributed, faults, files, launchers, ledger, mesh


def config() -> ConfigDict:
    """The config file's config, overrides applied."""
    return flags.FLAGS.config


def workdir() -> pathlib.Path:
    """Where the run lives."""
    return pathlib.Path(flags.FLAGS.workdir)


def cache() -> pathlib.Path | None:
    """The shared artifacts' folder, if one was given."""
    return pathlib.Path(flags.FLAGS.cache) if flags.FLAGS.cache else None


def accept_config_change() -> bool:
    """Whether a workdir of another config may be gone on with."""
    return flags.FLAGS.accept_config_change


def line(module: str) -> str:
    """The exact command, for the report."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def use_devices(runtime: RuntimeConfig, folder: pathlib.Path | None) -> None:
    """Makes the devices, before the first use of one, and joins the run's other processes.

    Compiled programs are kept below `folder`; None: no program is run.
    """
    compiled = runtime.compilation_cache or str(folder / ".jax_cache") if folder else None
    mesh.configure_devices(runtime.cpu_devices, compiled)
    if folder is not None:
        ledger.check_platforms()
        distributed.initialize(_launch(), runtime.host_timeout)
        if distributed.count() > 1:
            faults.watch_others()


def _launch() -> launchers.Launch:
    """As the flags say; a command without these flags is one process."""
    given = flags.FLAGS
    if "coordinator" not in given:
        return launchers.Launch(launchers.NONE)
    if not all(number.isdigit() for number in given.local_devices):
        raise ConfigError(f"--local_devices: got {given.local_devices}; takes numbers, e.g. 0,1")
    devices = tuple(map(int, given.local_devices))
    return launchers.Launch(given.coordinator, given.num_processes, given.process_id, devices)


@contextlib.contextmanager
def ending(folder: pathlib.Path | None = None) -> Iterator[None]:
    """SIGTERM ends the process with the code to be queued again, a user's error in one line.

    Args:
      folder: where the command writes, for errors of the disk; None: as its flags say.
    """
    logging.set_verbosity(logging.WARNING)  # at INFO, orbax tells a story a checkpoint
    grace = flags.FLAGS.grace if "grace" in flags.FLAGS else faults.GRACE
    try:
        with (
            faults.saving_on_sigterm(grace),
            # Of folders and links, which nothing below has put into words.
            files.disk_errors(folder or _folder(), "a file of this run"),
        ):
            yield
    except faults.Preempted as stop:
        logging.warning("%s", stop)
        sys.exit(faults.REQUEUE_EXIT_CODE)
    except (Exception, KeyboardInterrupt) as error:
        if str(error).startswith("RESOURCE_EXHAUSTED"):
            error.add_note(
                "lt_jax: out of memory: take smaller batches, more devices, or split the "
                "parameters over them (config.runtime.fsdp)"
            )
        if distributed.count() > 1:
            faults.end_among_others(error)
        if isinstance(error, UserError):
            sys.exit(f"lt_jax: {error}")
        raise


def _folder() -> pathlib.Path:
    """Where this command writes: the workdir, or what an experiment calls its output."""
    given = (flags.FLAGS[name].value for name in ("workdir", "out") if name in flags.FLAGS)
    return pathlib.Path(next(filter(None, given), "."))


class _ConfigFile(flags.ArgumentParser):
    """A .json file is read as data; of a .py file, which is a program, `get_config` is called."""

    def __init__(self, python: flags.ArgumentParser) -> None:
        """`python` is for Python files."""
        super().__init__()
        self._python = python

    def parse(self, path: str) -> ConfigDict:
        """The locked config; ConfigError: no such file, none of these kinds, or a wrong value."""
        file = pathlib.Path(path.partition(":")[0])
        if not file.is_file():
            raise ConfigError(f"{path}: no such file; takes a config, .py or .json")
        if file.suffix.lower() == ".json":
            return json_file.read(pathlib.Path(path), Config)
        if file.suffix != ".py":
            raise ConfigError(f"{path}: takes .py, which is run, or .json, which is data")
        return self._python.parse(path)  # type: ignore[return-value]

    def flag_type(self) -> str:
        """For `--help`."""
        return "config file"


def define_config(what: str, name: str = "config") -> flags.FlagHolder[Any]:
    """Defines `--<name>`, the path of a config (.py or .json), and its overrides `--<name>.a.b=v`.

    Args:
      what: it configures, for `--help`.
      name: of the flag.
    """
    holder = config_flags.DEFINE_config_file(name, None, what)
    flag = flags.FLAGS[name]
    flag.parser = _ConfigFile(flag.parser)
    return holder


def start(main: Callable[[list[str]], None]) -> None:
    """Defines the flags of a run in one workdir, parses all and runs `main`."""
    define_config("--config.a.b=v overrides a field")
    flags.DEFINE_string("workdir", None, "folder of this run", required=True)
    flags.DEFINE_string("cache", None, "folder of artifacts that workdirs share")
    flags.DEFINE_bool("accept_config_change", False, "go on in a workdir of another config")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, auto or none")
    flags.DEFINE_integer("num_processes", -1, "processes of the run; -1: as the launcher says")
    flags.DEFINE_integer("process_id", -1, "number of this one, from 0; -1: as the launcher says")
    flags.DEFINE_list("local_devices", [], "GPUs of this process, e.g. 0,1; none: its share")
    _run(main)


def experiment(main: Callable[[list[str]], None]) -> None:
    """Parses the flags that are defined, and runs `main`, which ends as `ending` says."""

    def ended(argv: list[str]) -> None:
        with ending():
            main(argv)

    _run(ended)


def _run(main: Callable[[list[str]], None]) -> None:
    flags.DEFINE_float(
        "grace", faults.GRACE, "seconds from SIGTERM to the end; below the scheduler's", 1.0
    )
    if "config" in flags.FLAGS:
        flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser; an override of a field that the config lacks is an error in one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        # ml_collections names the key alone, or first asks "Did you mean "a" instead of "b"?".
        asked = re.search(r'Did you mean .* instead of "(\w+)"\?', str(error))
        key = asked[1] if asked else str(error).strip("'\"")
        given = next((arg for arg in argv if key in arg), "--config")
        hint = f"{asked[0]} " if asked else ""
        sys.exit(
            f"lt_jax: {given}: the config has no such field; {hint}--dry_run prints those it has"
        )
