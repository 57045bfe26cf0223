#!/usr/bin/env python
"""Run the step again that stopped a training run, and name the module whose values first stop being finite.

The file is the one that the run named, below its folder "replay". The exit status is 1 if the step is not finite again,
0 if it is finite this time, and 2 if the file cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Read, run again, report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="OUTPUT_DIR/replay/iteration_N/rank_R.pth")
    parser.add_argument("--device", default="cpu", help="where to run it; the bits are those of the device of the run")
    args = parser.parse_args(arguments)

    from s2uniseg_d2.engine.replay import load_replay, run_again
    from s2uniseg_d2.engine.tracing import FiniteTrace, Found

    try:
        replay = load_replay(args.file, device=args.device)
    except ValueError as error:
        sys.stderr.write(f"replay_batch.py: {' '.join(str(error).split())}\n")
        return 2
    record = replay.record
    print(f"stopped: {record['reason']}")
    print(f"process {record['rank']} of {record['processes']}, pictures: {', '.join(record['pictures'])}")
    with FiniteTrace(replay.model) as trace:
        losses, wrong = run_again(replay)

    def show(what: str, found: Found | None) -> None:
        if found is not None:
            place = f"{found.module or 'the model'} ({found.kind})"
            print(f"{what}: {place}, {found.wrong} values of shape {found.shape}; {found.origin}")

    for name, loss in losses.items():
        kept = record["losses"].get(name)
        print(f"  {name} = {loss:.9g}" + ("" if kept in (None, loss) else f", in the run {kept:.9g}"))
    show("first output that is not finite", trace.output)
    show("first gradient of an output that is not finite", trace.gradient)
    print(f"run again: {wrong or 'everything is finite'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
