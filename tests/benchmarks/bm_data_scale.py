"""Time to start and memory of a training loader over millions of pictures; one JSON line per source.

python tests/benchmarks/bm_data_scale.py --entries 2000000 --workers 4
python tests/benchmarks/bm_data_scale.py --sources tar --entries 200000

The pictures are fabricated: hard links to a few small JPEGs in folders of 1,000 (list, folder), or as many copies in
shards of 10,000 (tar, 2 KiB a picture); --folder keeps them for a second run. The loader is the real one of the in1k
recipe with views of 32 pixels, so that reading pictures does not hide what is measured.

"start" is from the data set's name to the loader (a tar's first start makes its index), "again" a second start in the
same process, as the check before a run and the run itself are, "first_batch" until the first batch is there: starting
workers and the epoch's shuffle. "mib" is each process's resident memory after --batches batches ("rss"; "own" is what
it shares with no other) and the main process's peak; "libraries" is the main process before any data, which the goal of
1 GiB per process includes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

PER_FOLDER, PER_SHARD, PER_INODE = 1000, 10_000, 30_000


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((64, 64)).save(data, "JPEG")
    return data.getvalue()


def fabricate(source: str, folder: Path, count: int) -> str:
    """Write what is missing below ``folder`` and return the data set's name."""
    if source == "tar":
        return fabricate_shards(folder / f"tar{count}", count)
    root = folder / f"pictures{count}"
    if not root.exists():
        for number in range(count):
            if number % PER_INODE == 0:
                original = folder / f"original{number // PER_INODE}.jpeg"
                original.write_bytes(jpeg(number))
            if number % PER_FOLDER == 0:
                below = root / f"n{number // PER_FOLDER:08d}"
                below.mkdir(parents=True)
            os.link(original, below / f"{below.name}_{number}.JPEG")
    if source == "folder":
        return f"folder:{root}"
    listing = folder / f"list{count}.txt"
    with listing.open("w") as file:
        for number in range(count):
            below = f"n{number // PER_FOLDER:08d}"
            file.write(f"{root.name}/{below}/{below}_{number}.JPEG\n")
    return f"list:{listing}"


def fabricate_shards(root: Path, count: int) -> str:
    last = (count - 1) // PER_SHARD
    if not root.exists():
        root.mkdir(parents=True)
        data = jpeg(0)
        for shard in range(last + 1):
            with tarfile.open(root / f"{shard:06d}.tar", "w") as tar:
                for number in range(shard * PER_SHARD, min(count, (shard + 1) * PER_SHARD)):
                    info = tarfile.TarInfo(f"{number:09d}.jpg")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"tar:{root}/{{{0:06d}..{last:06d}}}.tar"


def memory(process: int | str) -> dict[str, int]:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"rss": kib["Rss"] // 1024, "own": own // 1024}


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


def measure(name: str, workers: int, batches: int) -> dict:
    from s2uniseg_d2.config import load_config
    from s2uniseg_d2.data import build_train_loader, resolve_dataset

    cfg = load_config(Path(__file__).resolve().parents[2] / "configs" / "s2uniseg_in1k.yaml")
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.GLOBAL_LONGEST_PX = cfg.INPUT.VIEWS.SIZE_PX = 32
    line = {"mib": {"libraries": memory("self")["rss"]}}
    start = time.perf_counter()
    resolve_dataset(name)
    loader = build_train_loader(cfg)
    line["start"] = time.perf_counter() - start
    start = time.perf_counter()
    loader = build_train_loader(cfg)
    line["again"] = time.perf_counter() - start
    start = time.perf_counter()
    stream = iter(loader)
    next(stream)
    line["first_batch"] = time.perf_counter() - start
    start = time.perf_counter()
    for _ in itertools.islice(stream, batches):
        pass
    line["pictures_per_second"] = batches * cfg.SOLVER.IMS_PER_BATCH / (time.perf_counter() - start)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    line["mib"] |= {"main": memory("self"), "main_peak": peak(), "workers": [memory(child) for child in children]}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=2_000_000)
    parser.add_argument("--sources", nargs="+", choices=("list", "folder", "tar"), default=["list", "folder"])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where the pictures are kept; default: a temporary folder")
    parser.add_argument("--name", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.name:
        print(json.dumps(measure(arguments.name, arguments.workers, arguments.batches)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for source in arguments.sources:
            name = fabricate(source, folder, arguments.entries)
            line = {"source": source, "entries": arguments.entries, "load_before": round(os.getloadavg()[0], 2)}
            words = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--name", name]
            words += ["--workers", str(arguments.workers), "--batches", str(arguments.batches)]
            done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
            print(json.dumps(line | json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
