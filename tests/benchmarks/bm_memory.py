"""Whether memory grows: the slope of the resident memory over thousands of tiny iterations, or of small pictures.

python tests/benchmarks/bm_memory.py train --count 10000
python tests/benchmarks/bm_memory.py label --count 100000
python tests/benchmarks/bm_memory.py record --count 10000 [--keep-all]

"train" is `train_net.py`'s own trainer on the smallest model there is, with checkpoints and the record of a real run.
"label" is the pseudo_masks command on generated pictures. "record" is the record of a run alone, with sixty scalars a
step; --keep-all lets it keep them all, as Detectron2 does. The first fifth of a run is left out of the slope:
allocators and caches fill there. Steps of an allocator make readings depend on their neighbours, so the slope is fitted
to the means of 20 blocks, and its 95 % interval is that of the blocks. "heap" is the same of the bytes that are in use,
which glibc counts: resident memory also holds the gaps between them, whose number wanders. One line of JSON; Linux
alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from scipy import stats

from tests.tiny import tiny_config, tiny_words

BLOCKS, WARM_UP = 20, 0.2
SCALARS = 60
SMALLEST = {
    "MODEL__VIT__EMBED_DIM": 24,
    "MODEL__QUERY_HEAD__INS_QUERIES": 3,
    "MODEL__QUERY_HEAD__SEM_QUERIES": 2,
    "MODEL__QUERY_HEAD__DECODER_LAYERS": 1,
    "MODEL__LOSS__NUM_POINTS": 16,
    "MODEL__VIT_ADAPTER__EXTRA_EXTRACTORS": 0,
    "MODEL__VIT_ADAPTER__CONV_INPLANE": 4,
    "INPUT__GLOBAL_LONGEST_PX": 32,
    "MODEL__UNIAP__TAUS": "(0.8, 0.5)",
    "INPUT__VIEWS__SIZE_PX": 32,
    "INPUT__VIEWS__NUM": 2,
    "SOLVER__IMS_PER_BATCH": 1,
}


class _MallocInfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


def count_heap() -> int:
    """Bytes of the heap that are in use, those of blocks mapped one by one included; 0 without glibc 2.33 or later."""
    call = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if call is None:
        return 0
    call.restype = _MallocInfo
    info = call()
    return int(info.uordblks + info.hblkhd)


class Readings:
    """How much memory was resident after how many things; also line by line in a file, which a stopped run leaves."""

    def __init__(self, file: Path | None) -> None:
        self.done: list[int] = []
        self.used: list[int] = []
        self.heap: list[int] = []
        self._file = file.open("w") if file else None

    def take(self, done: int) -> None:
        self.done.append(done)
        self.used.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        self.heap.append(count_heap())
        if self._file:
            self._file.write(f"{self.done[-1]},{self.used[-1]},{self.heap[-1]}\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def fit_slope(done: list[int], bytes_used: list[int]) -> dict[str, float]:
    """Bytes by which memory grows with each thing done, and the half-width of the 95 % interval."""
    x, y = np.array(done, float), np.array(bytes_used, float)
    kept = x >= WARM_UP * x[-1]
    blocks = np.array_split(np.flatnonzero(kept), BLOCKS)
    fit = stats.linregress([x[block].mean() for block in blocks], [y[block].mean() for block in blocks])
    return {
        "bytes_each": round(float(fit.slope), 2),
        "plus_minus": round(float(fit.stderr * stats.t.ppf(0.975, BLOCKS - 2)), 2),
        "mib_after_warm_up": round(float(y[blocks[0]].mean()) / 2**20, 2),
        "mib_at_end": round(float(y[blocks[-1]].mean()) / 2**20, 2),
    }


def make_pictures(folder: Path, count: int, side: int) -> Path:
    """Pictures of two coloured halves, each different; written without an encoder, for there may be many."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    head = b"P6\n%d %d\n255\n" % (side, side)
    for number in range(count):
        colours = generator.integers(0, 256, (2, 3), dtype=np.uint8)
        row = np.repeat(colours, side // 2, axis=0)
        picture = np.broadcast_to(row, (side, side, 3)) ^ generator.integers(0, 8, (side, side, 1), dtype=np.uint8)
        (folder / f"{number:06d}.ppm").write_bytes(head + picture.tobytes())
    return folder


def measure_training(folder: Path, count: int, workers: int, readings: Readings) -> None:
    from detectron2.engine import HookBase

    from s2uniseg_d2.engine.trainer import Trainer

    class Sampler(HookBase):
        def after_step(self):
            if self.trainer.iter % 10 == 9:
                readings.take(self.trainer.iter + 1)

    pictures = make_pictures(folder / "pictures", 64, 64)
    cfg = tiny_config(
        **SMALLEST,
        DATASETS__TRAIN=f"('folder:{pictures}',)",
        OUTPUT_DIR=folder / "out",
        SOLVER__MAX_ITER=count,
        SOLVER__CHECKPOINT_PERIOD=max(count // 10, 1),
        SOLVER__KEEP_CHECKPOINTS=2,
        DATALOADER__NUM_WORKERS=workers,
    )
    (folder / "out").mkdir()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.register_hooks([Sampler()])
    trainer.resume_or_load(resume=False)
    trainer.train()


def measure_record(folder: Path, count: int, readings: Readings, *, keeps_all: bool) -> None:
    from types import SimpleNamespace

    from detectron2.utils.events import EventStorage

    from s2uniseg_d2.engine import record

    if keeps_all:
        record.forget_old = lambda storage: None
    hook = record.RecordHook(folder, count + 1)
    generator = np.random.default_rng(0)
    with EventStorage(0) as storage:
        hook.trainer = SimpleNamespace(storage=storage, start_iter=0, max_iter=count + 1, iter=0)
        hook.before_train()
        for iteration in range(count):
            storage.iter = hook.trainer.iter = iteration
            values = generator.random(SCALARS).tolist()
            storage.put_scalars(total_loss=1.0, time=0.5, **{f"loss_{i}": value for i, value in enumerate(values)})
            hook.after_step()
            if iteration % 10 == 9:
                readings.take(iteration + 1)
        hook.after_train()


def measure_labelling(folder: Path, count: int, side: int, readings: Readings) -> None:
    from s2uniseg_d2.labeling.journal import Journal
    from s2uniseg_d2.pseudo_masks import main as label

    append = Journal.append

    def watched(self, *words):
        append(self, *words)
        readings.take(self.total.labelled + self.total.skipped)

    Journal.append = watched  # type: ignore[method-assign]
    pictures = make_pictures(folder / "pictures", count, side)
    words = ["--input", str(pictures), "--output", str(folder / "labels.json"), "--weights", "", "--device", "cpu"]
    words += ["--image-size", str(side), "--batch-size", "32", "--embeddings", "--max-masks", "4", "--"]
    try:
        status = label([*words, *tiny_words(**SMALLEST)])
    finally:
        Journal.append = append  # type: ignore[method-assign]
    if status or readings.done[-1] != count:
        raise SystemExit(f"bm_memory.py: status {status} after {readings.done[-1:]} of {count} pictures")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # `make bench` calls every benchmark without words
    parser.add_argument("what", nargs="?", default="train", choices=["train", "label", "record"])
    parser.add_argument("--count", type=int, default=1600, help="iterations or pictures")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of training")
    parser.add_argument("--side", type=int, default=32, help="of the pictures to label, in pixels")
    parser.add_argument("--keep-all", action="store_true", help="of scalars, in record")
    parser.add_argument("--readings", type=Path, help="CSV file for all readings, as they are taken")
    args = parser.parse_args(arguments)
    least = 1600 if args.what == "label" else 500  # two readings a block
    if args.count < least:
        raise SystemExit(f"bm_memory.py: --count must be at least {least}, got {args.count}")
    readings = Readings(args.readings)
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "train":
            measure_training(Path(folder), args.count, args.workers, readings)
        elif args.what == "record":
            measure_record(Path(folder), args.count, readings, keeps_all=args.keep_all)
        else:
            measure_labelling(Path(folder), args.count, args.side, readings)
    readings.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = {"wall": round(time.perf_counter() - start), "cpu": round(time.process_time() - cpu)}
    figures = fit_slope(readings.done, readings.used) | {"peak_mib": round(peak, 2), "seconds": seconds}
    if readings.heap[-1]:
        figures["heap"] = fit_slope(readings.done, readings.heap)
    print(json.dumps({"what": args.what, "count": args.count} | figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
