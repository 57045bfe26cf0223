"""The long form: many cases of every kind, and a table of how they ended.

* `python -m tests.fuzz --cases 10000 --seed 1`
* `python -m tests.fuzz --only pictures --cases 250`
"""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.fuzz.harness import try_target
from tests.fuzz.targets import TARGETS, cases_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="at least so many in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="a target by name")
    args = parser.parse_args()
    total, failed = [0, 0], 0
    print("| what is read | tried | succeeded | refused by name | otherwise |\n|---|---|---|---|---|")
    for target in TARGETS:
        if args.only not in (None, target.name):
            continue
        count = cases_of(target, args.cases)
        try:
            ends = try_target(target, count, args.seed)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failed += 1
            print(f"| {target.name} | | | | a failure |", flush=True)
            traceback.print_exception(error)
            continue
        total = [total[0] + ends["succeeded"], total[1] + ends["refused"]]
        print(f"| {target.name} | {ends.total()} | {ends['succeeded']} | {ends['refused']} | 0 |", flush=True)
    print(f"| all | {sum(total)} | {total[0]} | {total[1]} | {failed} |")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
