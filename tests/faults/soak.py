"""Inject faults into the real commands, and say how many were survived and what was lost.

* `python -m tests.faults.soak --injections 200 --seed 0 --output output/faults`
* `python -m tests.faults.soak --only "disk full" --injections 5 --output output/faults`

`OUTPUT/faults.json` holds every injection, `OUTPUT/faults.md` the table; a run that did not survive keeps its folder
with its log. The faults take turns, and some in a row disturb the same run, which goes on after each. The moment of
each is drawn by the seed and its number.
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


def plan(names: Sequence[str], injections: int, length: int) -> list[list[tuple[int, str]]]:
    """Which faults disturb one run together: those of its kind, in turn, up to ``length`` of them, each numbered."""
    groups: list[list[tuple[int, str]]] = []
    waiting: dict[str, list[tuple[int, str]]] = {}
    for number in range(injections):
        name = names[number % len(names)]
        kind = FAULTS[name].run
        if kind == "own":
            groups.append([(number, name)])
            continue
        waiting.setdefault(kind, []).append((number, name))
        if len(waiting[kind]) == length:
            groups.append(waiting.pop(kind))
    return [*groups, *waiting.values()]


def inject(data: Data, folder: Path, group: Sequence[tuple[int, str]], seed: int) -> list[dict[str, Any]]:
    """Disturb one run by some faults and let it end; the folder stays if not all was well.

    A fault that missed its moment, for none was left or the machine was busy, gets one more try on a new run.
    """
    found: list[dict[str, Any]] = []
    injection, mine = _place(data, folder / "0", group), []
    for number, name in group:
        each = _disturb(injection, number, name, f"{seed} {number}")
        if each["missed"]:
            _end(injection, mine or [each])
            wrong = each["problems"][1:] if not mine else []  # of a run that nothing has disturbed
            injection, mine = _place(data, folder / str(number), group), []
            each = _disturb(injection, number, name, f"{seed} {number} again")
            each["problems"] += wrong
        mine.append(each)
        found.append(each)
    _end(injection, mine)
    if not any(each["problems"] for each in found if not each["missed"]):
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _place(data: Data, folder: Path, group: Sequence[tuple[int, str]]) -> Injection:
    kind = FAULTS[group[0][1]].run
    return Injection(data, folder, name="training" if kind == "own" else kind)


def _disturb(injection: Injection, number: int, name: str, seed: str) -> dict[str, Any]:
    start, is_missed = time.monotonic(), False
    injection.rng, injection.problems = random.Random(seed), []
    injection.lost, injection.moment = None, ""
    try:
        FAULTS[name].disturb(injection)
    except MissedError as missed:
        is_missed, injection.problems = True, [f"missed: {missed}", *injection.problems]
    except Exception as error:  # noqa: BLE001 a check that breaks is a fault that was not survived
        injection.problems.append(f"{type(error).__name__}: {error}")
    each = {"number": number, "fault": name, "moment": injection.moment, "missed": is_missed}
    return each | {"problems": injection.problems, "lost": injection.lost, "seconds": time.monotonic() - start}


def _end(injection: Injection, mine: Sequence[dict[str, Any]]) -> None:
    """Let a run end, compare, and lay what is wrong to all faults that disturbed it: nobody can tell which it was."""
    start, injection.problems = time.monotonic(), []
    try:
        if FAULTS[mine[0]["fault"]].run != "own":
            injection.finish()
        elif injection.run is not None:
            injection.started.end()
    except Exception as error:  # noqa: BLE001 likewise
        injection.problems.append(f"{type(error).__name__}: {error}")
    for each in mine:
        each["problems"] += injection.problems
        each["seconds"] = round(each["seconds"] + (time.monotonic() - start) / len(mine), 1)


def _say(found: Sequence[dict[str, Any]]) -> None:
    for each in found:
        state = "missed" if each["missed"] else "survived" if not each["problems"] else "NOT SURVIVED"
        sys.stderr.write(f"{each['number']} {each['fault']}, {each['moment']}: {state} in {each['seconds']} s\n")
        for problem in each["problems"]:
            sys.stderr.write(f"    {problem}\n")


def soak(
    folder: Path, names: Sequence[str], injections: int, seed: int, jobs: int, length: int = 3, minutes: float = 0
) -> list[dict[str, Any]]:
    """Inject the faults in turn, up to ``length`` into one run, several runs at a time.

    After so many ``minutes``, if they are not 0, no further run begins.
    """
    end = time.monotonic() + 60 * minutes
    with contextlib.ExitStack() as stack:
        servers: SimpleQueue[Server] = SimpleQueue()
        first = stack.enter_context(Server())
        servers.put(first)
        data = Data(folder / "data", first)
        for _ in range(jobs - 1):
            servers.put(stack.enter_context(Server()))

        def work(group: list[tuple[int, str]]) -> list[dict[str, Any]]:
            server = servers.get()
            try:
                if minutes and time.monotonic() > end:
                    return []
                found = inject(data.served_by(server), folder / f"{group[0][0]:04d}", group, seed)
            finally:
                servers.put(server)
            _say(found)
            return found

        with ThreadPoolExecutor(jobs) as pool:
            found = [each for group in pool.map(work, plan(names, injections, length)) for each in group]
    return sorted(found, key=lambda each: each["number"])


def table(found: Sequence[dict[str, Any]]) -> str:
    """Injections by fault, as Markdown."""
    lines = [
        "| Fault | Injected | Survived | Moment missed | Iterations lost: mean | most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in [*dict.fromkeys(each["fault"] for each in found), "all"]:
        mine = [each for each in found if name in (each["fault"], "all")]
        happened = [each for each in mine if not each["missed"]]
        lost = [each["lost"] for each in happened if each["lost"] is not None]
        survived = sum(not each["problems"] for each in happened)
        losses = f"{sum(lost) / len(lost):.2f} | {max(lost)}" if lost else "– | –"
        lines.append(f"| {name} | {len(happened)} | {survived} | {len(mine) - len(happened)} | {losses} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every fault was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="injections at a time")
    parser.add_argument("--faults-per-run", type=int, default=3, help="the most that disturb one run")
    parser.add_argument(
        "--minutes", type=float, default=0, help="after which no further run begins (default: no limit)"
    )
    parser.add_argument("--only", default="", help="faults whose names hold this")
    args = parser.parse_args(arguments)
    names = [name for name in FAULTS if args.only in name]
    if not names:
        parser.error(f"--only must be a part of one of {', '.join(FAULTS)}, got {args.only!r}")
    args.output.mkdir(parents=True, exist_ok=True)
    # the commands work in folders of their own
    folder = Path(tempfile.mkdtemp(prefix="runs_", dir=args.output.resolve()))
    found = soak(folder, names, args.injections, args.seed, args.jobs, args.faults_per_run, args.minutes)
    (args.output / "faults.json").write_text(json.dumps(found, indent=1))
    (args.output / "faults.md").write_text(table(found))
    sys.stdout.write(table(found))
    shutil.rmtree(folder / "data")
    if not any(each["problems"] for each in found if not each["missed"]):
        shutil.rmtree(folder)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
