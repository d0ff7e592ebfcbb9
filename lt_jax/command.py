"""What every command line of a run shares: its flags, their parser, how it ends."""

import contextlib
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lt_jax.config import RuntimeConfig
from lt_jax.errors import UserError
from lt_jax.runtime import faults, mesh

_CONFIG = config_flags.DEFINE_config_file("config", None, "--config.a.b=v overrides a field")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of this run", required=True)
_CACHE = flags.DEFINE_string("cache", None, "folder of artifacts that workdirs share")
_ACCEPT = flags.DEFINE_bool("accept_config_change", False, "go on in a workdir of another config")


def config() -> ConfigDict:
    """The config file's config, overrides applied."""
    return _CONFIG.value


def workdir() -> pathlib.Path:
    """Where the run lives."""
    return pathlib.Path(_WORKDIR.value)


def cache() -> pathlib.Path | None:
    """The shared artifacts' folder, if one was given."""
    return pathlib.Path(_CACHE.value) if _CACHE.value else None


def accept_config_change() -> bool:
    """Whether a workdir of another config may be gone on with."""
    return _ACCEPT.value


def line(module: str) -> str:
    """The exact command, for the report."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def use_devices(runtime: RuntimeConfig, folder: pathlib.Path | None) -> None:
    """Makes the devices, before the first use of one; compiled programs are kept below `folder`."""
    compiled = runtime.compilation_cache or str(folder / ".jax_cache") if folder else None
    mesh.configure_devices(runtime.cpu_devices, compiled)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """SIGTERM ends the process with the code to be queued again, a user's error in one line."""
    logging.set_verbosity(logging.WARNING)  # at INFO, orbax tells a story a checkpoint
    faults.install_sigterm_handler()
    try:
        yield
    except faults.Preempted as stop:
        logging.warning("%s", stop)
        sys.exit(faults.REQUEUE_EXIT_CODE)
    except UserError as error:
        sys.exit(f"lt_jax: {error}")


def start(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and runs `main`."""
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
