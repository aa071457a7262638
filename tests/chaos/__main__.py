"""Jobs under faults at random moments: `python -m tests.chaos --jobs 60 --faults 120`.

Real workers, API, broker and database; the runner is the stand-in. The last line of each database
counts what went wrong, and the exit status is 1 if anything did.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from tests.chaos.chaos import Chaos, Plan
from tests.chaos.house import House


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--faults", type=int, default=120)
    parser.add_argument("--power-cuts", type=int, default=10, help="of the faults")
    parser.add_argument("--minutes", type=float, default=0.0, help="instead of --faults")
    parser.add_argument("--database", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lease", type=float, default=3.0, help="seconds")
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between two faults")
    parser.add_argument("--out", type=Path, help="a folder for figures and tables")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in [n for n in os.environ if n.startswith("CALIFT_")]:
        del os.environ[name]
    both = ("sqlite", "postgres") if options.database == "both" else (options.database,)
    lines, bad = [], False
    for database in both:
        plan = Plan(
            jobs=options.jobs,
            faults=options.faults,
            power_cuts=min(options.power_cuts, options.faults),
            minutes=options.minutes,
            seed=options.seed,
            pause_s=options.pause,
        )
        house = House(database, workers=options.workers, ttl_s=options.lease)
        wrong = ["it was broken off"]
        try:
            figures = Chaos(house, plan).run()
            wrong = figures.faulty()
            sys.stdout.write(f"\n{figures.table()}\n{figures.seconds:.0f} s\n")
            for line in wrong:
                sys.stdout.write(f"{line}\n")
            lines.append(f"{database}: {figures.line()}")
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                body = json.dumps(figures.as_json(), indent=2)
                (options.out / f"{database}.json").write_text(body + "\n")
        finally:
            house.remove(keep_files=bool(wrong))
            if wrong:
                sys.stdout.write(f"{database}: its files and logs are kept in {house.folder}\n")
        bad = bad or bool(wrong)
    for line in lines:
        sys.stdout.write(f"{line}\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
