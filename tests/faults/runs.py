"""The three runs that faults disturb, what comes out of each, and whether what lies on the disk is sound."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from s2uniseg_d2.engine.checkpoint_files import LAST, damage_of, numbered_checkpoints, resume_candidates
from tests.engine.checkpoints import differing, is_of_the_machine, read
from tests.engine.test_train_net import write_truth
from tests.faults.server import Server, Started
from tests.faults.shim import events
from tests.tiny import tiny_words, write_pictures

ITERATIONS, PERIOD = 12, 2
PICTURES = 4
CHECKED = ("training", "evaluation", "labelling")
LEFTOVERS = (".partial", ".part", ".lock", ".progress", ".rows")
SMALL = {
    "INPUT__GLOBAL_LONGEST_PX": 64,
    "INPUT__TEST_LONGEST_PX": 64,
    "INPUT__VIEWS__SIZE_PX": 32,
}


class Run(NamedTuple):
    """What a command was told, and where it works."""

    name: str
    folder: Path
    pictures: Path
    output: Path
    module: str
    words: list[str]

    @property
    def trace(self) -> Path:
        """Events of all its starts."""
        return self.folder / "trace.txt"


class Data:
    """Pictures, undisturbed runs, and fresh places for disturbed ones.

    Args:
        folder: of everything.
        server: starts commands.
    """

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.pictures = write_pictures(folder / "pictures", PICTURES, size=(64, 48))
        self.undisturbed: dict[str, tuple[Run, dict[str, Any]]] = {}
        for name in CHECKED:
            self._leave_alone(name)

    def served_by(self, server: Server) -> Data:
        """The same, with another server."""
        other = copy.copy(self)
        other.server = server
        return other

    def _leave_alone(self, name: str) -> None:
        run = self.place(name, self.folder / f"undisturbed_{name}")
        started = self.start(run, {"disk": {"folder": str(run.output)}})
        if started.wait() != 0:
            raise RuntimeError(f"the undisturbed {name} ended with {started.status}: {started.said()[-3000:]}")
        if problems := damages(run, is_over=True):
            raise RuntimeError(f"the undisturbed {name} left: {problems}")
        self.undisturbed[name] = run, results(run)

    def place(self, name: str, folder: Path, **more: Any) -> Run:
        """A run in a folder of its own, in which its command works, with pictures of its own.

        Paths in its words are relative, so that what it writes is the same in every folder.
        """
        folder.mkdir(parents=True)
        pictures = folder / "pictures"
        shutil.copytree(self.pictures, pictures)
        output = folder / "output"
        if name == "labelling":
            words = tiny_words(MODEL__UNIAP__TAUS="(0.7, 0.5)", MODEL__UNIAP__MIN_TOKENS=2, **SMALL)
            command = ["--input", "pictures", "--output", "output/labels.json", "--embeddings", "--preview", 1]
            words = [*map(str, [*command, "--batch-size", 1, "--readers", 1]), "--", *words]
            return Run(name, folder, pictures, output, "s2uniseg_d2.pseudo_masks", words)
        write_truth(pictures, folder / "truth.json")
        settings = SMALL | {
            "DATASETS__TRAIN": "('folder:pictures',)",
            "DATASETS__TEST": "('coco:truth.json:pictures',)",
            "OUTPUT_DIR": "output",
            "MODEL__VIT__DROP_PATH": 0.4,
            "SOLVER__BASE_LR": 1e-3,
            "SOLVER__MAX_ITER": ITERATIONS,
            "SOLVER__CHECKPOINT_PERIOD": PERIOD,
            "SOLVER__KEEP_CHECKPOINTS": 2,
            "TEST__EVAL_PERIOD": ITERATIONS // 2,
            "TEST__PICTURES": 1,
            "TEST__CASES": 0,
        }
        flags = []
        if name == "evaluation":
            weights = self.undisturbed["training"][0].output / "model_final.pth"
            settings |= {"MODEL__WEIGHTS": weights, "EVALUATION__PART_PICTURES": 1}
            flags = ["--eval-only"]
        return Run(name, folder, pictures, output, "train_net", [*flags, *tiny_words(**settings | more)])

    def start(
        self,
        run: Run,
        fault: dict[str, Any] | None = None,
        *,
        resume: bool = False,
        words: Sequence[Any] = (),
        **environment: Any,
    ) -> Started:
        """Start a run, the first time or again as its messages say; further words come after its own."""
        flags = ["--resume"] if resume and run.name != "labelling" else []
        return self.server.start(
            run.module, run.folder, [*flags, *run.words, *words], run.folder / "log.txt",
            {"trace": str(run.trace), **(fault or {})}, **environment,
        )  # fmt: skip

    def operations(self, name: str) -> list[list[str]]:
        """What the undisturbed run does to its disk: number, bytes before, kind, file."""
        return [words[1:] for words in events(self.undisturbed[name][0].trace) if words[0] == "disk"]


def results(run: Run) -> dict[str, Any]:
    """All that a run is made for, without what it says of time and memory."""
    output = run.output
    if run.name == "labelling":
        content = json.loads((output / "labels.json").read_text())
        content["info"].pop("root")
        rows = (output / "labels.embeddings.npy").read_bytes()
        return {"labels.json": content, "embeddings": rows, "skipped": (output / "labels.skipped.txt").exists()}
    if run.name == "evaluation":
        found = {"results": json.dumps(json.loads((output / "results.json").read_text())["results"])}
        for path in sorted([*(output / "inference").rglob("*"), output / "per_picture.json"]):
            if path.is_file():
                found[str(path.relative_to(output))] = path.read_bytes()
        return found
    return {
        "checkpoint": read(output / "model_final.pth"),
        "record": record(output),
        "checkpoints": checkpoints(output),
    }


def checkpoints(output: Path) -> list[str]:
    """Names of all that a run keeps."""
    return sorted(path.name for path in output.glob("*.pth"))


def record(output: Path) -> list[str]:
    """Figures of metrics.json, each as iteration, name and value, in order; what stands there twice stands twice."""
    figures = []
    for line in (output / "metrics.json").read_text().splitlines():
        scalars = json.loads(line)
        iteration = scalars.pop("iteration")
        figures += [f"{iteration} {name} {value}" for name, value in scalars.items() if not is_of_the_machine(name)]
    return sorted(figures)


def differences(found: dict[str, Any], wanted: dict[str, Any], seams: Iterable[int] = ()) -> list[str]:
    """Where results differ by a bit, in words.

    A run that stopped by itself after one of ``seams`` has written a line of that, which may stand in the record.
    """
    problems = []
    if "checkpoint" in wanted:
        leaves = differing(found["checkpoint"], wanted["checkpoint"])
        problems += [f"{len(leaves)} parts of the weights differ, such as {leaves[0]}"] if leaves else []
        mine, theirs = found["record"], wanted["record"]
        lost, more = sorted(set(theirs) - set(mine)), sorted(set(mine) - set(theirs))
        more = [figure for figure in more if int(figure.split()[0]) not in seams]
        twice = len(mine) - len(set(mine))
        if lost or more or twice:
            problems.append(f"the record lacks {lost[:2]} of {len(lost)}, has {more[:2]} of {len(more)}, {twice} twice")
        # one that a signal made takes the place of an older one
        if len(found["checkpoints"]) != len(wanted["checkpoints"]):
            problems.append(f"checkpoints are {found['checkpoints']}, not {wanted['checkpoints']}")
        return problems
    for name in {**found, **wanted}:
        if found.get(name) != wanted.get(name):
            problems.append(f"{name} differs")
    return problems


def damages(run: Run, *, is_over: bool) -> list[str]:
    """Files that are half-written, and with ``is_over`` those that only a run in progress may have."""
    found = []
    for path in sorted(run.output.rglob("*")) if run.output.exists() else []:
        if not path.is_file():
            continue
        if path.name.endswith(LEFTOVERS) or (path.name.startswith(".") and is_over):
            found += [f"{path.name} was left behind"] if is_over else []
        elif reason := _damage(path, is_over=is_over):
            found.append(f"{path.name}: {reason}")
    return found


def _damage(path: Path, *, is_over: bool) -> str | None:
    try:
        if path.suffix == ".pth":
            return damage_of(path)
        if path.name == LAST:
            return None if (path.parent / path.read_text()).is_file() else f"names {path.read_text()!r}"
        if path.name == "metrics.json":
            for line in path.read_text().splitlines()[: None if is_over else -1]:
                json.loads(line)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".npy":
            np.load(path)
        elif path.suffix == ".yaml":
            yaml.safe_load(path.read_text())["MODEL"]["DEVICE"]
    except (ValueError, OSError, KeyError, TypeError, SyntaxError, yaml.YAMLError) as error:
        return " ".join(str(error).split())[:200]
    return None


def steps_done(noted: Iterable[list[str]]) -> int:
    """How many iterations a run has finished, the furthest, by the events that it noted."""
    return max((int(words[1]) + 1 for words in noted if words[0] == "step" and words[2] == "done"), default=0)


def steps_kept(run: Run) -> int:
    """How many iterations the checkpoint holds that the run would go on from."""
    best = next((path for path in resume_candidates(run.output) if damage_of(path) is None), None)
    if best is None:
        return 0
    numbers = {path: number for number, path in numbered_checkpoints(run.output).items()}
    return numbers[best] + 1 if best in numbers else ITERATIONS
