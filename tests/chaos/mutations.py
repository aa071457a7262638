"""Break each protection on purpose, on a copy of the tree: tests must go red, or they hold nothing.

`python -m tests.chaos.mutations`, or with names of mutations to try these alone. The exit status is
1 if a mutation survives, or if what it should turn red is red without it.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """A protection removed: a text of a file, which is there once, is replaced.

    `tests` is what pytest is given; one of them must fail. One kind of database is enough.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_STORE = "tests/backend/store"
_SUPERVISOR = "tests/worker/test_supervisor.py"

MUTATIONS = {
    "fence": Mutation(
        "a worker's writes ask no more whether the attempt still holds the run",
        "backend/store/states.py",
        ".where(Run.id == run_id, Run.attempt == attempt, Run.phase.in_(WORKING_PHASES))",
        ".where(Run.id == run_id)",
        (f"{_STORE}/test_claims.py", "-k", "fence and sqlite"),
    ),
    "claim": Mutation(
        "a claim asks no more whether the run waits",
        "backend/store/claims.py",
        'Run.phase == "QUEUED")\n        .values(\n            phase="STARTING"',
        'Run.phase != "")\n        .values(\n            phase="STARTING"',
        (f"{_STORE}/test_claims.py", "-k", "one_wins and sqlite"),
    ),
    "outbox": Mutation(
        "what is queued leaves no message in its transaction",
        "backend/store/outbox.py",
        "    connection.execute(_INSERT, row)",
        "    return",
        (f"{_STORE}/test_life.py", "-k", "from_queue and sqlite"),
    ),
    "lease clock": Mutation(
        "a lease is counted by the worker's clock",
        "backend/store/claims.py",
        '"lease_expires": NOW + ttl_s, "heartbeat_at": NOW',
        '"lease_expires": __import__("time").time() + ttl_s, "heartbeat_at": NOW',
        (f"{_STORE}/test_reaper.py", "-k", "clock and sqlite"),
    ),
    "self-fence": Mutation(
        "a worker that the database does not answer goes on for ever",
        "worker/lease.py",
        "if time.monotonic() >= self._deadline:\n                self._lose()",
        "if time.monotonic() >= self._deadline:\n                pass",
        (_SUPERVISOR, "-k", "unreachable_database"),
    ),
    "reaper": Mutation(
        "nobody looks for leases that have run out",
        "backend/store/reaper.py",
        "for run_id, attempt in expired:",
        "for run_id, attempt in expired[:0]:",
        (f"{_STORE}/test_reaper.py", "-k", "spent and sqlite"),
    ),
    "atomic rename": Mutation(
        "files are written in place",
        "calift_core/files/__init__.py",
        'target.with_name(f".{target.name[:180]}.{secrets.token_hex(6)}.tmp")',
        "target",
        ("tests/core/test_files.py",),
    ),
    "locks of SQLite": Mutation(
        "the database's file is opened and closed beside its connections",
        "backend/store/engine.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600",
        "os.O_RDWR | os.O_CREAT, 0o600",
        (f"{_STORE}/test_engine.py", "-k", "sqlite"),
    ),
    "hash on read": Mutation(
        "a stored file is not compared with its hash",
        "backend/storage/artifacts.py",
        "        found = sha256_file(path)\n",
        "        found = sha256\n",
        ("tests/backend/test_artifacts.py",),
    ),
    "replay of records": Mutation(
        "what an earlier attempt measured and nobody heard is not put back",
        "worker/tail.py",
        "points = read_curves(self._folder, until=self._resumed_at)",
        "points = read_curves(self._folder, until=0)",
        ("tests/worker/test_replay.py",),
    ),
    "resume record": Mutation(
        "points after the step that is resumed from stay",
        "backend/store/rows.py",
        "if batch.resumed_step is not None:\n        for table in (Metric, SpectrumRow):",
        "if batch.resumed_step is not None:\n        for table in ():",
        (f"{_STORE}/test_records.py", "-k", "resumed_run and sqlite"),
    ),
    "tie to the parent": Mutation(
        "a runner outlives a worker that is killed",
        "backend/children/process.py",
        '"ctypes.CDLL(None,use_errno=True).prctl(1,int(signal.SIGKILL),0,0,0);"\n',
        "",
        ("tests/worker/test_worker.py", "-k", "sigkill_takes_the_runner_along"),
    ),
}


def copy_of_the_tree(target: Path) -> None:
    """What git knows and what is new, without what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int, list[str], str]:
    """Exit status of pytest, the tests that failed, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        + [f"--basetemp={tree.parent / 'pytest'}", *tests],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed, done.stdout[-3000:] + done.stderr[-1000:]


def end_processes_of(folder: str) -> None:
    """End what a broken protection has left running."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if folder.encode() in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(MUTATIONS))
    parser.add_argument(
        "--green", action="store_true", help="the tests are known to be green without a mutation"
    )
    options = parser.parse_args()
    names = options.names or list(MUTATIONS)
    bad = []
    with tempfile.TemporaryDirectory(prefix="calift-mutations-") as folder:
        tree = Path(folder) / "tree"
        copy_of_the_tree(tree)
        for name in names:
            mutation = MUTATIONS[name]
            began = time.monotonic()
            file = tree / mutation.file
            sound = file.read_text(encoding="utf-8")
            if sound.count(mutation.old) != 1:
                raise SystemExit(f"{name}: {mutation.file} does not hold once:\n{mutation.old}")
            status, failed, answer = (
                (0, [], "") if options.green else run_tests(tree, mutation.tests)
            )
            if status != 0:
                bad.append(name)
                sys.stdout.write(f"{name}: red without the mutation\n{answer}\n")
                continue
            file.write_text(sound.replace(mutation.old, mutation.new), encoding="utf-8")
            status, failed, answer = run_tests(tree, mutation.tests)
            file.write_text(sound, encoding="utf-8")
            if status != 1 or not failed:
                bad.append(name)
                sys.stdout.write(f"{name}: SURVIVES (pytest {status})\n{answer}\n")
            else:
                took = time.monotonic() - began
                sys.stdout.write(f"{name}: red, {failed[0]} ({took:.0f} s)\n")
            sys.stdout.flush()
            end_processes_of(folder)
    sys.stdout.write(f"mutations={len(names)} survived={len(bad)}\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
