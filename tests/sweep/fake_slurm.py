"""Slurm's commands as small programs, for tests: jobs are processes of this machine, run at once.

Files of its folder say how it fares: `queue/<number>` is a job in the queue, each line of
`refusals` is what sbatch answers once instead of taking a job, `state` is that of any job, squeue
does not answer while `down` exists, and `asked` is every command that was given.
"""

import os
import pathlib
import re
import subprocess
import sys

NAMES = ("sbatch", "squeue", "scontrol", "scancel", "srun")


def install(home: pathlib.Path) -> pathlib.Path:
    """Writes the commands; returns the folder that goes in front of PATH."""
    folder = home / "bin"
    (home / "queue").mkdir(parents=True)
    folder.mkdir()
    for name in NAMES:
        line = f'exec {sys.executable} {__file__} {home} {name} "$@"'
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def _sbatch(home: pathlib.Path, script: str) -> None:
    refusals = home / "refusals"
    if refusals.exists() and (lines := refusals.read_text().splitlines()):
        refusals.write_text("\n".join(lines[1:]))
        sys.exit(lines[0])
    text = pathlib.Path(script).read_text()
    array = re.search(r"--array=0-(\d+)%", text)
    last = int(array[1]) if array else -1
    (command,) = re.findall(r"^srun .* (\S+ -u -m submitit\.core\._submit .*)$", text, re.M)
    number = 1 + sum(1 for _ in home.glob("taken*"))
    (home / f"taken{number}").touch()
    for task in range(last + 1) if array else ["N/A"]:
        place = home / "queue" / f"{number}_{task}".replace("/", "-")
        place.touch()
        known = {"SLURM_JOB_ID": str(number), "SUBMITIT_EXECUTOR": "slurm"}
        if array:
            known |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.Popen(
            ["sh", "-c", f"{command}; rm {place}"],
            env={**os.environ, **known},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    print(f"Submitted batch job {number}")


def _squeue(home: pathlib.Path, *options: str) -> None:
    if (home / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    if "--format=%T" in options:
        print((home / "state").read_text())
    else:
        print("\n".join(path.name.replace("-", "/") for path in (home / "queue").iterdir()))


if __name__ == "__main__":
    home, name, *given = sys.argv[1:]
    with (pathlib.Path(home) / "asked").open("a") as file:
        print(name, *given, file=file)
    if name == "sbatch":
        _sbatch(pathlib.Path(home), *given)
    elif name == "squeue":
        _squeue(pathlib.Path(home), *given)
