"""`calift slurm`: runs as jobs of a cluster that Slurm shares out.

Nothing here schedules: sbatch is handed one script, and squeue, scancel and the rest tell and do
what they do for every other job.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from calift.commands.console import JsonFlag, out, print_json
from calift.commands.service import with_absolute_paths
from calift_core.errors import CaliftError, SpecError
from calift_core.files import atomic_write_bytes, atomic_write_json
from calift_core.schema.places import expanded
from calift_core.schema.spec import RunSpec, load_spec

slurm_app = typer.Typer(no_args_is_help=True, help="Runs as jobs of a Slurm cluster.")
SCRIPT = Path(__file__).with_name("slurm.sbatch")


class SlurmError(CaliftError):
    """Slurm is not here, or refused a job."""

    code = "SLURM_REFUSED"


@slurm_app.command()
def script() -> None:
    """Print the sbatch script, to adapt it."""
    out.file.write(SCRIPT.read_text(encoding="utf-8"))


@slurm_app.command()
def submit(
    spec_files: Annotated[
        list[Path],
        typer.Argument(
            metavar="SPEC...",
            exists=True,
            dir_okay=False,
            help="RunSpecs; several become one array job, a task each.",
        ),
    ],
    folder: Annotated[
        Path,
        typer.Option("--out", help="Folder for the results, a folder each, that all nodes see."),
    ],
    hosts: Annotated[int, typer.Option(min=1, help="Nodes that share each run.")] = 1,
    partition: Annotated[str | None, typer.Option(help="As sbatch takes it.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Limit of a job; a run that needs longer is queued again.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores on each node.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of each node, as --mem takes it.")] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Tasks of an array at once.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="Another option of sbatch, as --option=--qos=low."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the command, submit nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Hand runs to sbatch. A run that is preempted or out of time goes on where it was."""
    specs = [with_absolute_paths(load_spec(path)) for path in spec_files]
    _require_alike(specs, hosts)
    folder = expanded(folder).absolute()
    places = _places(specs, folder)
    ours = ["--parsable", f"--output={folder / 'slurm-%A_%a.log'}", f"--nodes={hosts}"]
    ours += _sizes(specs[0], hosts, cpus)
    if len(specs) > 1:
        ours.append(f"--array=0-{len(specs) - 1}" + (f"%{at_once}" if at_once else ""))
    else:
        ours[1] = f"--output={folder / 'slurm-%j.log'}"
    options = {"partition": partition, "time": time, "mem": memory}
    ours += [f"--{name}={value}" for name, value in options.items() if value is not None]
    listing = folder / "slurm" / "list.tsv"
    command = shlex.join([sys.executable, "-m", "calift"])
    argv = ["sbatch", *ours, *(option or ()), str(SCRIPT)]
    environment = {"CALIFT_LIST": str(listing), "CALIFT_COMMAND": command}
    if dry_run:
        out.print(shlex.join([*(f"{k}={v}" for k, v in environment.items()), *argv]), markup=False)
        return
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "there is no sbatch on this machine",
            hint="Run this where jobs are submitted from; --dry-run shows the command.",
        )
    for spec, place in zip(specs, places, strict=True):
        spec_file = folder / "slurm" / f"{place.name}.json"
        spec_file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(spec_file, spec.model_dump(mode="json"))
    lines = "".join(f"{folder / 'slurm' / f'{p.name}.json'}\t{p}\n" for p in places)
    atomic_write_bytes(listing, lines.encode())
    job = _sbatch(argv, environment)
    if as_json:
        print_json({"job": job, "folders": [str(place) for place in places]})
        return
    out.print(f"job {job}: {len(specs)} run{'s' * (len(specs) > 1)}", markup=False)
    for place in places:
        out.print(f"  {place}", markup=False)


def _require_alike(specs: Sequence[RunSpec], hosts: int) -> None:
    """See that the tasks of a job can be of one size."""
    sizes = {json.dumps([s.resources.model_dump(), s.train.device]) for s in specs}
    if len(sizes) > 1:
        raise SpecError(
            "the runs of an array must ask for the same resources and device, got "
            + " and ".join(sorted(sizes)),
            hint="Submit those that differ by themselves.",
        )
    n = specs[0].resources.processes
    if n % hosts or n < hosts:
        raise SpecError(
            f"--hosts {hosts}: resources names the GPUs of all nodes together, expected a "
            f"multiple of {hosts}, got {n}"
        )


def _places(specs: Sequence[RunSpec], folder: Path) -> list[Path]:
    """A folder for each run, by its name."""
    names = [re.sub(r"[^A-Za-z0-9._-]", "-", spec.name) for spec in specs]
    for name in names:
        if names.count(name) > 1 or name == "slurm":
            raise SpecError(
                f"each run of an array needs a name of its own, got {name!r} "
                f"{names.count(name)} times"
            )
    return [folder / name for name in names]


def _sizes(spec: RunSpec, hosts: int, cpus: int | None) -> list[str]:
    """What a node of the job has: a GPU and some cores for each process."""
    resources = spec.resources
    here = resources.processes // hosts
    wanted = [f"--cpus-per-task={cpus or here * (1 + (spec.train.workers or 0))}"]
    if resources.gpus > 1 or spec.train.device.startswith("cuda"):
        wanted.append(f"--gpus-per-node={here}")
    return wanted


def _sbatch(argv: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        argv, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SlurmError(f"sbatch refused the job: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
