#!/usr/bin/env python
"""Score the tests of core: of a seeded sample of small changes to its code, how many make a test fail.

* `python tools/mutation_score.py --sample 300 --seed 0`
* `python tools/mutation_score.py --sample 300 --seed 0 --again survived`   those that survived, with the tests of now

First each test file runs once and notes which lines each of its tests executes, and how long it takes. A mutant then
runs the tests that execute its lines, the quick ones first, until one fails; each in a process forked from one that has
PyTorch loaded. Tests beyond --seconds of processor time in sum are not run: a mutant that only those would find counts
as a survivor. Results are kept in --folder and gone on with.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
# Triton's kernels run by its interpreter, in the process that holds the mutant.
os.environ["TRITON_INTERPRET"] = "1"

from mutants import Mutant, apply_mutant, find_mutants, show_mutant  # noqa: E402

CORE = ROOT / "s2uniseg_d2" / "core"
# those that mirror core file by file, and those of its direct users
TESTS = (
    "tests/core/**/test_*.py",
    *(f"tests/modeling/test_{name}.py" for name in ("s2uniseg", "targets", "prediction", "labelers", "observation")),
)
PREPARED = (
    "torch",
    "numpy",
    "scipy.optimize",
    "scipy.sparse.csgraph",
    "timm",
    "pytest",
    "pytest_timeout",
    "hypothesis",
    "_hypothesis_pytestplugin",
    "detectron2.modeling",
)
KILLED, SURVIVED, TIMED_OUT, CRASHED = "killed", "survived", "timed out", "crashed"
SETUP = "set-up"  # what fixtures execute belongs to every test of a file
WALL_FACTOR = 30  # wall seconds that a process may take for each of its processor, on a busy machine


class MutatedModule(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a changed syntax tree in place of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module's own, none for others."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Python's usual one."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def in_child(work: Callable[[], Any], cpu_s: float, wall_s: float) -> tuple[Any, str]:
    """What ``work`` returns in a forked process, as JSON, and how that ended: "", or why there is no result."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setpgid(0, 0)
        limit = math.ceil(cpu_s)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        try:
            result = json.dumps(work()).encode()
            with open(writing, "wb") as pipe:
                pipe.write(result)
        except BaseException:  # noqa: BLE001  (the process ends here, whatever it was)
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    return _result_of(pid, reading, wall_s)


def _result_of(pid: int, reading: int, wall_s: float) -> tuple[Any, str]:
    end, chunks = time.monotonic() + wall_s, []
    import select

    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        data = os.read(reading, 2**16) if ready else b""
        if not data:
            break
        chunks.append(data)
    if not chunks:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if chunks:
        return json.loads(b"".join(chunks)), ""
    return None, "no result" if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"


def run_pytest(words: Sequence[str], plugins: Sequence[object] = ()) -> int:
    """The exit status of pytest, which leaves nothing behind."""
    import pytest

    # no plugins but those that tests need: others take longer to load than most tests
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin"]
    quiet += ["--hypothesis-seed=0", "--rootdir", str(ROOT), "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*quiet, *words], plugins=list(plugins)))


class Lines:
    """pytest plugin: the lines of core that each test executes, and its processor seconds."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._start = 0.0

    def pytest_runtest_setup(self) -> None:
        """What follows belongs to the file."""
        self.coverage.switch_context(SETUP)

    def pytest_runtest_call(self, item: Any) -> None:
        """What follows belongs to the test."""
        self.coverage.switch_context(item.nodeid)
        self._start = time.process_time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note how long it took, and what failed."""
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = time.process_time() - self._start
        if report.failed:
            self.failed.append(report.nodeid)


def map_file(test_file: str, data_file: Path) -> dict[str, Any]:
    """Of one test file: seconds by test, and by module and line the tests that execute it; coverage's data are kept."""
    from coverage import Coverage

    coverage = Coverage(data_file=data_file, branch=True, include=[f"{CORE}/*"], config_file=False)
    plugin = Lines(coverage)
    coverage.start()
    run_pytest([test_file], [plugin])
    coverage.stop()
    coverage.save()
    data, lines = coverage.get_data(), {}
    for path in data.measured_files():
        module = Path(path).relative_to(CORE).as_posix()
        by_line = data.contexts_by_lineno(path)
        used = sorted({name for names in by_line.values() for name in names} & plugin.seconds.keys())
        lines[module] = {
            # lines that run at import, and in fixtures, belong to all tests of the file that use the module
            str(line): used if {"", SETUP} & set(names) else sorted(set(names) & plugin.seconds.keys())
            for line, names in by_line.items()
        }
    return {"seconds": plugin.seconds, "lines": lines, "failed": plugin.failed}


def map_tests(folder: Path, jobs: int, patterns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """:func:`map_file` of every test file; those that have not changed are not run again."""
    source = _sum(sorted(CORE.rglob("*.py")))
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {}
    for path in sorted({path for tests in patterns for path in ROOT.glob(tests)}):
        wanted[path.relative_to(ROOT).as_posix()] = folder / f"{_sum([path])}_{source}.json"

    def make(entry: tuple[str, Path]) -> None:
        name, kept = entry
        if not kept.is_file():
            result, problem = in_child(lambda: map_file(name, kept.with_suffix(".coverage")), 600, 600 * WALL_FACTOR)
            if result is None:
                raise SystemExit(f"mutation_score.py: {name} gave no map: {problem}")
            if result["failed"]:
                raise SystemExit(f"mutation_score.py: tests must pass unchanged: {', '.join(result['failed'])}")
            write_json(kept, result)
            print(f"mapped {name}: {len(result['seconds'])} tests, {sum(result['seconds'].values()):.0f} s", flush=True)

    in_parallel(make, list(wanted.items()), jobs)
    return {name: json.loads(kept.read_text()) for name, kept in wanted.items()}


def write_json(path: Path, content: Any) -> None:
    """A file that is whole once it is there."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def _sum(paths: Iterable[Path]) -> str:
    content = hashlib.sha256()
    for path in paths:
        content.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]


def in_parallel(work: Callable[[Any], None], items: Sequence[Any], jobs: int) -> None:
    """Call ``work`` on every item, in a few forked processes; what it finds it must leave in files."""
    children = []
    for number in range(jobs):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for item in items[number::jobs]:
                    work(item)
                status = 0
            except SystemExit as error:
                sys.stderr.write(f"{error}\n")
            finally:
                os._exit(status)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]  # all of them, also after one has failed
    if any(statuses):
        raise SystemExit("mutation_score.py: a process has failed")


def choose_tests(
    maps: Mapping[str, Mapping[str, Any]], module: str, mutant: Mutant, seconds: float
) -> tuple[list[str], float]:
    """The tests that execute a mutant's lines, those of its module's own file first, then the quick; and their time."""
    mirror = _mirror(module)
    found: dict[str, float] = {}
    for content in maps.values():
        by_line = content["lines"].get(module, {})
        for line in range(mutant.line, mutant.last_line + 1):
            found |= {test: content["seconds"][test] for test in by_line.get(str(line), [])}
    ordered = sorted(found, key=lambda test: (found[test] > 1.0, not test.startswith(mirror), found[test]))
    chosen, left = [], seconds
    for test in ordered:
        if found[test] <= left:
            chosen.append(test)
            left -= found[test]
    return chosen, seconds - left


def _mirror(module: str) -> str:
    """The test file of a module."""
    folder, _, file = f"tests/core/{module}".rpartition("/")
    return f"{folder}/test_{file}"


def try_mutant(module: str, mutant: Mutant, tests: Sequence[str], seconds: float) -> str:
    """How the tests end when a module is changed."""
    path = CORE / module
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def work() -> int:
        tree = apply_mutant(path.read_text(encoding="utf-8"), mutant.number)
        sys.meta_path.insert(0, MutatedModule(name, path, tree))
        return run_pytest(["-x", *tests])

    if not tests:
        return SURVIVED
    status, problem = in_child(work, limit := 3 * seconds + 20, limit * WALL_FACTOR)
    if status is None:
        return TIMED_OUT if "signal" in problem else CRASHED
    # 1: a test failed; 2: a test file could not be imported; others are pytest's own troubles
    return {0: SURVIVED, 1: KILLED, 2: KILLED}.get(status, CRASHED)


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's)."""
    if not count:
        return 0.0, 1.0
    share, spread = successes / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half


def draw_sample(count: int, seed: int, only: Sequence[str] = ()) -> list[tuple[str, Mutant]]:
    """Mutants of all modules of core together, or of some, drawn without putting back, in the order of drawing."""
    everything = [
        (path.relative_to(CORE).as_posix(), mutant)
        for path in sorted(CORE.rglob("*.py"))
        if not only or path.relative_to(CORE).as_posix().startswith(tuple(only))
        for mutant in find_mutants(path.read_text(encoding="utf-8"))
    ]
    print(f"{len(everything)} mutants in all, {min(count, len(everything))} drawn with seed {seed}", flush=True)
    random.Random(seed).shuffle(everything)
    return everything[:count]


def report(results: Sequence[Mapping[str, Any]]) -> str:
    """Score, files and survivors in words."""
    count, found = len(results), sum(result["end"] != SURVIVED for result in results)
    low, high = wilson(found, count)
    ends = Counter(result["end"] for result in results)
    lines = [
        f"score {found}/{count} = {found / max(count, 1):.1%} (95 % interval {low:.1%} to {high:.1%}); {dict(ends)}"
    ]
    modules = Counter(result["module"] for result in results)
    for module in sorted(modules):
        of_module = [result for result in results if result["module"] == module]
        lines.append(f"  {module}: {sum(r['end'] != SURVIVED for r in of_module)} of {len(of_module)}")
    for result in results:
        if result["end"] == SURVIVED:
            lines.append(f"{result['module']}:{result['line']} {result['what']} ({result['tests']} tests)")
            lines += [f"    {line}" for line in result["diff"].splitlines()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Draw, map, try, report; returns 1 if the score is below --fail-under."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=15, help="processor seconds of tests for each mutant")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="folders (losses/) or files of core, with their own tests"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "mutation", help="where results are kept")
    parser.add_argument("--again", default="", choices=["", SURVIVED], help="try those that ended so once more")
    parser.add_argument("--fail-under", type=float, default=0.85)
    args = parser.parse_args(arguments)
    for name in PREPARED:
        importlib.import_module(name)
    gc.freeze()  # what is loaded here is not looked through again in every process
    sample = draw_sample(args.sample, args.seed, args.only)
    own = [f"tests/core/{part}**/test_*.py" if part.endswith("/") else _mirror(part) for part in args.only]
    maps = map_tests(args.folder / "map", args.jobs, own or TESTS)
    sources = {module: (CORE / module).read_text(encoding="utf-8") for module, _ in sample}

    def place(module: str, mutant: Mutant) -> Path:
        digest = hashlib.sha256(f"{module} {mutant.number} {sources[module]}".encode()).hexdigest()[:16]
        return args.folder / f"{digest}.json"

    def attempt(entry: tuple[str, Mutant]) -> None:
        module, mutant = entry
        kept = place(module, mutant)
        if kept.is_file() and not (args.again and json.loads(kept.read_text())["end"] == args.again):
            return
        tests, seconds = choose_tests(maps, module, mutant, args.seconds)
        end = try_mutant(module, mutant, tests, seconds)
        diff = show_mutant(sources[module], mutant.number)
        about = {"module": module, "line": mutant.line, "what": mutant.what}
        write_json(kept, about | {"end": end, "tests": len(tests), "diff": diff})
        print(f"{end}: {module}:{mutant.line} {mutant.what}", flush=True)

    in_parallel(attempt, sample, args.jobs)
    outcome = [json.loads(place(*entry).read_text()) for entry in sample]
    print(report(outcome))
    return int(sum(result["end"] != SURVIVED for result in outcome) < args.fail_under * len(outcome))


if __name__ == "__main__":
    sys.exit(main())
