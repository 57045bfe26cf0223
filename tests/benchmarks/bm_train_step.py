"""Time and memory of a training step by part; one JSON line per recipe and batch size, each in a process of its own.

python tests/benchmarks/bm_train_step.py --recipes tiny full --batches 1 2 --steps 5
python tests/benchmarks/bm_train_step.py --recipes full --batches 4 --device cuda --amp bfloat16

The recipes are configs/tiny_scenes.yaml and configs/s2uniseg_in1k.yaml with random weights, at --batches pictures (the
recipe's own batch where it says "recipe"). Pictures are generated JPEGs of ImageNet's usual 500 x 375, or --pictures.
How long UniAP takes depends on what the teacher sees; random weights find many masks, so they are no easy case.

"seconds" gives median, minimum and maximum over the steps, "share" the part's median in the sum of all medians;
"label_share" is what the teacher's masks cost (UniAP, cropping to the views) in a step without "load"; the teacher's
own pass is not in it. "unsplit" is the step without the measuring of parts: on a GPU each part ends with a wait, which
the step does not have, and "waits" counts where a step waits for the device, by the lines that do. "host_reads" counts
the places that read values on the host, on any device, with those of what is on the CPU by design.

"mib" is the highest memory within the part above what was there before the first step: allocated memory on a GPU,
resident memory on the CPU, in a process of its own in which glibc gives every larger block back when it is freed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = {"tiny": "tiny_scenes.yaml", "full": "s2uniseg_in1k.yaml"}
LABEL_PARTS = ("uniap", "label_rest", "crop")
MIB = 2**20
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MEMORY_STEPS = 2
# glibc: blocks above 64 KiB are mapped one by one, so that what is resident is what is in use
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class Parts:
    """Seconds and peak memory of the named parts of a step; inner parts are taken out of outer ones."""

    def __init__(self, device: torch.device, clock: str) -> None:
        self.device = device
        self.now = CLOCKS[clock]
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak: dict[str, float] = defaultdict(float)
        self.is_split = True
        self.counts_memory = False
        self._spent: dict[str, float] = {}
        self._inner = [0.0]
        self.base = _memory_now(device)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if not self.is_split:
            yield
            return
        _wait(self.device)
        if self.counts_memory:
            _reset_peak(self.device)
        self._inner.append(0.0)
        start = self.now()
        yield
        _wait(self.device)
        spent = self.now() - start
        inner = self._inner.pop()
        self._inner[-1] += spent
        self._spent[name] = self._spent.get(name, 0.0) + spent - inner
        if self.counts_memory:
            self.peak[name] = max(self.peak[name], _peak_memory(self.device) - self.base)
            # the rest of an outer part begins anew
            _reset_peak(self.device)

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        """Make a function or method a part."""
        original = getattr(owner, attribute)

        def timed(*args, **kwargs):
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)

    def end_step(self) -> None:
        for name, spent in self._spent.items():
            self.seconds[name].append(spent)
        self._spent = {}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux: 5 sets the high-water mark back to what is resident now
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _memory_now(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / MIB if device.type == "cuda" else _status("VmRSS")


def _peak_memory(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else _status("VmHWM")


def write_pictures(folder: Path, count: int, size=(500, 375)) -> None:
    """JPEGs of smooth colour fields with hard-edged patches and some noise, which compress like photographs."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        for _ in range(12):
            x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
            w, h = rng.integers(20, size[0] // 3), rng.integers(20, size[1] // 3)
            picture[y : y + h, x : x + w] = picture[y : y + h, x : x + w] // 3 + rng.integers(0, 170, 3)
        picture += rng.integers(-12, 13, picture.shape)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)


def build(case: dict, folder: str):
    from detectron2.modeling import build_model

    import s2uniseg_d2.modeling  # noqa: F401  (registers)
    from s2uniseg_d2.config import load_config
    from s2uniseg_d2.data import build_train_loader
    from s2uniseg_d2.engine.optimizer import build_optimizer
    from s2uniseg_d2.modeling.compilation import compile_student

    words = ["MODEL.VIT.WEIGHTS", "", "MODEL.DEVICE", case["device"], "DATASETS.TRAIN", f"('folder:{folder}',)"]
    words += ["DATALOADER.NUM_WORKERS", "0", *case["opts"]]
    if case["batch"]:
        words += ["SOLVER.IMS_PER_BATCH", str(case["batch"])]
    cfg = load_config(REPOSITORY / "configs" / RECIPES[case["recipe"]], words)
    torch.manual_seed(0)
    model = build_model(cfg)
    model.train()
    model.copy_student_to_teacher()
    if case["compile"]:
        compile_student(model)
    return cfg, model, build_optimizer(cfg, model), iter(build_train_loader(cfg))


def split_model(parts: Parts, model, *, is_compiled: bool) -> None:
    """Name the parts of labelling and of the model's forward pass."""
    from s2uniseg_d2.modeling import s2uniseg

    parts.wrap(model.teacher_backbone, "pooling_features", "teacher")
    parts.wrap(model, "labeler", "uniap")
    parts.wrap(s2uniseg, "crop_labels_to_views", "crop")
    if is_compiled:
        parts.wrap(model, "student_pass", "student")
    else:
        parts.wrap(model.backbone, "forward", "student_trunk")
        parts.wrap(model.sem_seg_head, "forward", "student_decoder")
    parts.wrap(s2uniseg, "match_masks", "matching")


def take_step(parts: Parts, model, optimizer, loader, autocast, scaler) -> int:
    """One step as Detectron2's trainer with our hooks takes it; returns the number of masks."""
    with parts.part("load"):
        batch = next(loader)
    with parts.part("label_rest"), autocast():
        labels = model.label(batch)
    for item, pseudo in zip(batch, labels, strict=True):
        item["pseudo"] = pseudo
    with parts.part("losses"), autocast():
        losses = model(batch)
        total = sum(losses.values())
    optimizer.zero_grad()
    with parts.part("backward"):
        scaler.scale(total).backward()
    with parts.part("losses"):
        torch.stack([loss.detach().float() for loss in losses.values()]).cpu()
    with parts.part("optimizer"):
        scaler.step(optimizer)
        scaler.update()
    with parts.part("momentum"):
        model.update_teacher(0.9995)
    parts.end_step()
    return sum(len(kind.level) for pseudo in labels for kind in pseudo)


def run_case(case: dict) -> dict:
    torch.set_num_threads(case["threads"])
    device = torch.device(case["device"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = case["pictures"]
        if not folder:
            folder = scratch
            write_pictures(Path(scratch), 16)
        cfg, model, optimizer, loader = build(case, folder)
        dtype = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[case["amp"]]
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

        def autocast():
            return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

        parts = Parts(device, case["clock"])
        split_model(parts, model, is_compiled=case["compile"])
        arguments = (parts, model, optimizer, loader, autocast, scaler)
        start = time.perf_counter()
        take_step(*arguments)  # allocates the optimizer's state, and compiles
        first = time.perf_counter() - start
        line = {"batch": cfg.SOLVER.IMS_PER_BATCH, "views": cfg.INPUT.VIEWS.NUM, "first_step": round(first, 2)}
        if "time" in case["measure"]:
            line |= measure_time(case, parts, arguments)
        if "memory" in case["measure"]:
            parts.counts_memory = True
            for _ in range(MEMORY_STEPS):
                take_step(*arguments)
            line["mib"] = {name: round(value) for name, value in parts.peak.items()}
            line["mib_before"] = round(parts.base)
            line["mib_peak"] = round(parts.base + max(parts.peak.values()))
    return line


def measure_time(case: dict, parts: Parts, arguments: tuple) -> dict:
    parts.seconds.clear()
    masks = [take_step(*arguments) for _ in range(case["steps"])]
    medians = {name: statistics.median(values) for name, values in parts.seconds.items()}
    whole = sum(medians.values())
    label = sum(medians.get(name, 0.0) for name in LABEL_PARTS)
    pictures = len(next(arguments[3]))
    line = {
        "masks_per_picture": round(statistics.mean(masks) / pictures, 1),
        "seconds": {name: _spread(values) for name, values in parts.seconds.items()},
        "share": {name: round(value / whole, 4) for name, value in medians.items()},
        "label_share": round(label / (whole - medians["load"]), 4),
    }
    parts.is_split = False
    line["host_reads"] = count_host_reads(arguments)
    if parts.device.type == "cuda":
        line |= {"gpu": torch.cuda.get_device_name(), "waits": count_waits(arguments)}
    unsplit = []
    for _ in range(case["steps"]):
        start = parts.now()
        take_step(*arguments)
        _wait(parts.device)
        unsplit.append(parts.now() - start)
    parts.is_split = True
    return line | {"unsplit": _spread(unsplit)}


def count_host_reads(arguments) -> dict[str, dict[str, int]]:
    """How often a step reads values on the host, by module and function; most of UniAP's would wait for a GPU."""
    from tests.host_reads import HostReads

    with HostReads() as reads:
        take_step(*arguments)
    found: dict[str, dict[str, int]] = {"labels": {}, "rest": {}}
    for (module, function, what), count in reads.sites.most_common():
        group = "labels" if module.startswith(("core/labelers", "core/ops/components")) else "rest"
        found[group][f"{module}:{function}:{what}"] = count
    return found


def count_waits(arguments) -> dict:
    """How often a step waits for the GPU, and where."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take_step(*arguments)
    torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message)]
    places = Counter(f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in found)
    labels = sum(count for place, count in places.items() if "labelers" in place or "/ops/components" in place)
    return {"all": len(found), "labelers": labels, "places": dict(places.most_common(30))}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 5),
        "min": round(min(values), 5),
        "max": round(max(values), 5),
    }


def start_case(case: dict, **environment: str) -> dict:
    """Run one case in a new process, so that memory of another does not count."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(case["threads"]))
    words = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--case", json.dumps(case)]
    done = subprocess.run(words, env=os.environ | threads | environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


def measure_case(case: dict) -> dict:
    line = {key: case[key] for key in ("recipe", "device", "threads", "amp", "compile", "clock", "steps", "opts")}
    line["load_before"] = round(os.getloadavg()[0], 2)
    if case["device"] == "cuda":
        return line | start_case({**case, "measure": ["time", "memory"]})
    line |= start_case({**case, "measure": ["time"]}) if case["steps"] else {}
    return line | start_case({**case, "measure": ["memory"]}, **EXACT_MEMORY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--batches", nargs="+", default=["1"], help='pictures, or "recipe" for the recipe\'s own')
    parser.add_argument("--steps", type=int, default=5, help="0 measures memory alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--amp", choices=("", "bfloat16", "float16"), default="", help="autocast; default: float32")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: CPU seconds of all threads, for busy machines"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile of the student: minutes before the steps")
    parser.add_argument("--pictures", type=Path, default=None, help="a folder of pictures; default: generated ones")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE words for the config")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(json.loads(arguments.case))))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    case = {
        name: getattr(arguments, name) for name in ("steps", "threads", "device", "amp", "compile", "clock", "opts")
    }
    case["pictures"] = str(arguments.pictures.absolute()) if arguments.pictures else ""
    for recipe in arguments.recipes:
        for batch in arguments.batches:
            size = 0 if batch == "recipe" else int(batch)
            print(json.dumps(measure_case({**case, "recipe": recipe, "batch": size})), flush=True)


if __name__ == "__main__":
    main()
