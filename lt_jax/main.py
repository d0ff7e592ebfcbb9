"""Command line: a config in, the pipeline run.

python -m lt_jax.main --config=configs/digits.py --workdir=runs/demo
"""

from absl import flags

from lt_jax import command, dry_run, pipeline

_STAGES = flags.DEFINE_list("stages", list(pipeline.STAGES), "stages to run")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print config, stages and work; run nothing")


def main(_: list[str]) -> None:
    """Runs, or only describes, the pipeline."""
    workdir, cache = command.workdir(), command.cache()
    with command.ending():
        run = pipeline.Pipeline(command.config(), workdir, cache, command.line("lt_jax.main"))
        command.use_devices(run.config.runtime, None if _DRY_RUN.value else cache or workdir)
        if _DRY_RUN.value:
            print(dry_run.describe(run, _STAGES.value))
        else:
            run.run(_STAGES.value, command.accept_config_change())


if __name__ == "__main__":
    command.start(main)
