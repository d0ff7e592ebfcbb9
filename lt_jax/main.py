"""Command line: a config in, the pipeline run.

python -m lt_jax.main --config=configs/digits.py --workdir=runs/demo
"""

import pathlib
import re
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from lt_jax import dry_run, pipeline
from lt_jax.errors import UserError
from lt_jax.runtime import faults, mesh

_CONFIG = config_flags.DEFINE_config_file("config", None, "--config.a.b=v overrides a field")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of this run", required=True)
_CACHE = flags.DEFINE_string("cache", None, "folder of artifacts that workdirs share")
_STAGES = flags.DEFINE_list("stages", list(pipeline.STAGES), "stages to run")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print config, stages and work; run nothing")
_ACCEPT = flags.DEFINE_bool("accept_config_change", False, "go on in a workdir of another config")


def main(_: list[str]) -> None:
    """Runs, or only describes, the pipeline."""
    workdir = pathlib.Path(_WORKDIR.value)
    cache = pathlib.Path(_CACHE.value) if _CACHE.value else None
    command = shlex.join(["python", "-m", "lt_jax.main", *sys.argv[1:]])
    logging.set_verbosity(logging.WARNING)  # at INFO, orbax tells a story a checkpoint
    faults.install_sigterm_handler()
    try:
        run = pipeline.Pipeline(_CONFIG.value, workdir, cache, command)
        runtime = run.config.runtime
        compiled = runtime.compilation_cache or str((cache or workdir) / ".jax_cache")
        mesh.configure_devices(runtime.cpu_devices, None if _DRY_RUN.value else compiled)
        if _DRY_RUN.value:
            print(dry_run.describe(run, _STAGES.value))
        else:
            run.run(_STAGES.value, _ACCEPT.value)
    except faults.Preempted as stop:
        logging.warning("%s", stop)
        sys.exit(faults.REQUEUE_EXIT_CODE)
    except UserError as error:
        sys.exit(f"lt_jax: {error}")


def parse(argv: list[str]) -> list[str]:
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


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
