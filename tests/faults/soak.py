"""Inject faults into the real commands, and say how many were survived and what was lost.

* `python -m tests.faults.soak --injections 200 --seed 0 --output output/faults`
* `python -m tests.faults.soak --only "disk full" --injections 5 --output output/faults`

`OUTPUT/faults.json` holds every injection, `OUTPUT/faults.md` the table, and each that was not survived keeps its
folder, with the log of its runs. The faults take turns; the moment of each comes from the seed and its number alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import tests.faults.outside  # noqa: F401  registers its faults
from tests.faults.injections import FAULTS, Injection, MissedError
from tests.faults.runs import Data
from tests.faults.server import Server


def inject(data: Data, folder: Path, name: str, seed: int, number: int) -> dict[str, Any]:
    """One fault and what came of it; the folder stays if it was not survived."""
    injection = Injection(data, folder, random.Random(f"{seed} {number}"))
    start = time.monotonic()
    is_missed = False
    try:
        FAULTS[name](injection)
    except MissedError as missed:
        is_missed, injection.problems = True, [f"missed: {missed}"]
    except Exception as error:  # noqa: BLE001 a check that breaks is a fault that was not survived
        injection.problems.append(f"{type(error).__name__}: {error}")
    if not injection.problems:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "number": number,
        "fault": name,
        "moment": injection.moment,
        "missed": is_missed,
        "problems": injection.problems,
        "lost": injection.lost,
        "seconds": round(time.monotonic() - start, 1),
    }


def soak(folder: Path, names: Sequence[str], injections: int, seed: int, jobs: int) -> list[dict[str, Any]]:
    """Inject the faults in turn, several at a time."""
    with contextlib.ExitStack() as stack:
        servers: SimpleQueue[Server] = SimpleQueue()
        first = stack.enter_context(Server())
        servers.put(first)
        data = Data(folder / "data", first)
        for _ in range(jobs - 1):
            servers.put(stack.enter_context(Server()))

        def work(number: int) -> dict[str, Any]:
            server = servers.get()
            try:
                name = names[number % len(names)]
                found = inject(data.served_by(server), folder / f"{number:04d}", name, seed, number)
            finally:
                servers.put(server)
            state = "missed" if found["missed"] else "survived" if not found["problems"] else "NOT SURVIVED"
            sys.stderr.write(f"{number} {name}, {found['moment']}: {state} in {found['seconds']} s\n")
            for problem in found["problems"]:
                sys.stderr.write(f"    {problem}\n")
            return found

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(work, range(injections)))


def table(found: Sequence[dict[str, Any]]) -> str:
    """Injections by fault, as Markdown."""
    lines = [
        "| Fault | Injected | Survived | Iterations lost: mean | most |",
        "|---|---:|---:|---:|---:|",
    ]
    happened = [each for each in found if not each["missed"]]
    for name in [*dict.fromkeys(each["fault"] for each in happened), "all"]:
        mine = [each for each in happened if name in (each["fault"], "all")]
        lost = [each["lost"] for each in mine if each["lost"] is not None]
        survived = sum(not each["problems"] for each in mine)
        losses = f"{sum(lost) / len(lost):.2f} | {max(lost)}" if lost else "– | –"
        lines.append(f"| {name} | {len(mine)} | {survived} | {losses} |")
    if len(happened) < len(found):
        lines += ["", f"{len(found) - len(happened)} injections missed their moment and do not count."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every fault was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="injections at a time")
    parser.add_argument("--only", default="", help="faults whose names hold this")
    args = parser.parse_args(arguments)
    names = [name for name in FAULTS if args.only in name]
    if not names:
        parser.error(f"--only must be a part of one of {', '.join(FAULTS)}, got {args.only!r}")
    args.output.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="runs_", dir=args.output))
    found = soak(folder, names, args.injections, args.seed, args.jobs)
    (args.output / "faults.json").write_text(json.dumps(found, indent=1))
    (args.output / "faults.md").write_text(table(found))
    sys.stdout.write(table(found))
    shutil.rmtree(folder / "data")
    if all(not each["problems"] for each in found):
        shutil.rmtree(folder)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
