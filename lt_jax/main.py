"""Command line: a config in, the pipeline run.

python -m lt_jax.main --config=configs/digits.py --workdir=runs/demo
"""

from absl import flags

from lt_jax import command, dry_run, pipeline
from lt_jax import specs as specs_lib


def main(_: list[str]) -> None:
    """Runs, or only describes, the pipeline."""
    workdir, cache = command.workdir(), command.cache()
    with command.ending():
        run = pipeline.Pipeline(command.config(), workdir, cache, command.line("lt_jax.main"))
        command.use_devices(run.config.runtime, None if flags.FLAGS.dry_run else cache or workdir)
        if flags.FLAGS.dry_run:
            print(dry_run.describe(run, flags.FLAGS.stages))
        else:
            run.run(flags.FLAGS.stages, command.accept_config_change())


if __name__ == "__main__":
    flags.DEFINE_list("stages", list(specs_lib.STAGES), "stages to run")
    flags.DEFINE_bool("dry_run", False, "print config, stages and work; run nothing")
    command.start(main)
