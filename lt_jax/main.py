"""Command line: a config in, the pipeline run.

python -m lt_jax.main --config=configs/digits.py --workdir=runs/demo
"""

import os
import signal

if __name__ == "__main__":  # before the imports, which take seconds
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))

from absl import flags

from lt_jax import command, compilation, dry_run, pipeline
from lt_jax import specs as specs_lib
from lt_jax.config import ConfigError
from lt_jax.runtime import progress


def main(_: list[str]) -> None:
    """Runs the pipeline, only compiles its programs, or only describes it."""
    workdir, cache = command.workdir(), command.cache()
    asked = flags.FLAGS
    with command.ending():
        if asked.dry_run and asked.compile_only:
            raise ConfigError("--dry_run, --compile_only: got both; takes one of them")
        run = pipeline.Pipeline(command.config(), workdir, cache, command.line("lt_jax.main"))
        command.use_devices(run.config.runtime, None if asked.dry_run else cache or workdir)
        if asked.dry_run:
            print(dry_run.describe(run, asked.stages))
        elif asked.compile_only:
            for line in compilation.report(run, asked.stages):
                progress.say(line)
        else:
            run.run(asked.stages, command.accept_config_change())


if __name__ == "__main__":
    flags.DEFINE_list("stages", list(specs_lib.STAGES), "stages to run")
    flags.DEFINE_bool("dry_run", False, "print config, stages and work; run nothing")
    flags.DEFINE_bool("compile_only", False, "compile the stages' programs; run nothing")
    command.start(main)
