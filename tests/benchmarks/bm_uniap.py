"""Time UniAP (five layers, instance and semantic pooling) and the field's alternatives; one JSON line per case.

python tests/benchmarks/bm_uniap.py --sizes 32 64 128 --threads 2 --repeats 3
python tests/benchmarks/bm_uniap.py --methods uniap --sizes 32 --batch 4
python tests/benchmarks/bm_uniap.py --methods uniap --sizes 128 --batch 16 --device cuda

Each case runs in a process of its own, so that "peak_memory_mib" is the method's: the process's high-water mark, with
the imports and features of "memory_before_mib"; on a GPU what torch allocated there. "device_seconds" is how long a
GPU worked at the call: what "seconds" has beyond them is the host's launches and questions. Baselines run on the
CPU, on the same features as UniAP: greedy merging up to 64 x 64 tokens (with a heap, and as it is usually written,
looking through all pairs before each merge), normalised cuts up to 60 x 60 (once, as they are slow; 60 is added to
larger sizes) and Ward clustering up to 128 x 128.

"edges" are the candidate pairs that enter each layer, "undecided" those left to Eq. 2 and "exact" those left to
float64, for instance and semantic pooling. "floor_seconds" is what the matrix products that no known shortcut avoids
take at the rate of a large float32 product, measured right after: the second moments (N·d², by symmetry) and Eq. 5 of
each new supernode or semantic mask (4·N·d), for N different tokens. "copy_seconds" is one copy of the map. The last
line tells how the cost per token grows from the smallest to the largest size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from s2uniseg_d2.core.labelers.emission import MaskCollector
from s2uniseg_d2.core.labelers.graph import build_token_graph, contract_edges
from s2uniseg_d2.core.labelers.rounding import full_float32
from s2uniseg_d2.core.labelers.uniap import Layer, UniAP, UniAPConfig
from s2uniseg_d2.core.ops.products import multiply
from tests.benchmarks.uniap_baselines import cluster_by_ward, cut_masks, merge_by_scanning, merge_greedily
from tests.benchmarks.uniap_maps import SYNTHETIC, adjacent_cosines, make_features

Line = dict[str, Any]
METHODS = ("uniap", "greedy", "scan", "cuts", "ward")
NAMES = {
    "uniap": "UniAP",
    "batch": "UniAP, batch",
    "greedy": "greedy pairwise merging, heap",
    "scan": "greedy pairwise merging, scanning",
    "cuts": "three normalised cuts",
    "ward": "Ward clustering",
}
LARGEST = {"greedy": 64, "scan": 64, "cuts": 60, "ward": 128}
# Tokens per side of the map on which the baselines load what they need, before the clock runs.
WARM_SIDE = 4
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
MIB = 2**20
# The largest block of which glibc learns: half of what it keeps at most at the top of the heap.
HEAP_MIB = 31


def measure(call: Callable[[], object], repeats: int, device: torch.device) -> tuple[Line, object]:
    """Return the seconds of ``repeats`` calls, and the last result."""
    seconds, cpu_seconds, result = [], [], None
    for _ in range(repeats):
        _synchronise(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        result = call()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    times = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {"seconds": times, "cpu_seconds_min": min(cpu_seconds)}, result


def settle_heap() -> None:
    """Let the C library keep what is freed, as it does once a process freed a large tensor, such as an encoder's.

    Before that, glibc returns the top of the heap to the system after each call and asks for it again in the next, a
    page at a time; how often depends on the sizes that happened to be freed before, so that timings would not compare.
    """
    torch.empty(HEAP_MIB * MIB, dtype=torch.uint8)


def time_uniap(features: torch.Tensor, repeats: int) -> Line:
    label, device = UniAP(), features.device
    before = read_memory(device)
    label(features)
    line, labels = measure(lambda: label(features), repeats, device)
    line.update(before | {"peak_memory_mib": read_peak(device)})
    line["masks"] = {kind: len(getattr(labels[0], kind).level) for kind in ("instance", "semantic")}
    with full_float32(device):
        line.update(describe_layers(features[0], label.iterate_layers(features[0])))
        line["gflop_per_second"] = measure_products(device)
    line["floor_seconds"] = sum(line["floor_gflop"].values()) / line["gflop_per_second"]
    line["floor_share"] = line["floor_seconds"] / line["seconds"]["median"]
    line["copy_seconds"] = measure(features.clone, repeats, device)[0]["seconds"]["min"]
    return line | count_launches(lambda: label(features), device)


def time_batch(features: torch.Tensor, repeats: int) -> Line:
    """Time a batch against its pictures one by one."""
    label, device = UniAP(), features.device
    pictures = features.split(1)
    before = read_memory(device)
    label(features)
    line, _ = measure(lambda: label(features), repeats, device)
    line.update(before | {"peak_memory_mib": read_peak(device)})
    single, _ = measure(lambda: [label(picture) for picture in pictures], repeats, device)
    line["one_by_one_seconds"] = single["seconds"]
    line["batch_over_one_by_one"] = line["seconds"]["median"] / single["seconds"]["median"]
    return line | count_launches(lambda: label(features), device)


def time_baseline(method: str, features: torch.Tensor, repeats: int) -> Line:
    tokens, taus = features[0].numpy(), UniAPConfig().taus
    call = {
        "greedy": lambda x: merge_greedily(x, taus),
        "scan": lambda x: merge_by_scanning(x, taus),
        "cuts": cut_masks,
        "ward": cluster_by_ward,
    }[method]
    call(tokens[:, :WARM_SIDE, :WARM_SIDE])
    before = read_memory(features.device)
    line, result = measure(lambda: call(tokens), 1 if method == "cuts" else repeats, features.device)
    line.update(before | {"peak_memory_mib": read_peak(features.device)})
    if method in ("greedy", "scan"):
        line["regions"] = [len(set(partition.ravel().tolist())) for partition in result]
    elif method == "cuts":
        line["mask_tokens"] = result.sum(axis=(1, 2)).tolist()
    else:
        line["clusters"] = len(set(result.ravel().tolist()))
    return line


def describe_layers(tokens: torch.Tensor, layers: Iterable[Layer]) -> Line:
    """Return nodes and edges per layer, and the operations that no known shortcut avoids."""
    graph = build_token_graph(tokens)
    d, voters, edges = tokens.shape[0], graph.sizes.numel(), graph.edges
    line: Line = {"nodes": [], "edges": [], "semantic_candidates": [], "undecided": [], "exact": []}
    elected = 0
    masks = MaskCollector((tokens.shape[1], tokens.shape[2]), UniAPConfig())
    for level, layer in enumerate(layers):
        *instance, semantic = layer.steps
        line["edges"].append(edges.shape[1])
        for number, step in enumerate(instance):
            groups = torch.bincount(step.labels)
            elected += int((groups > (0 if level == number == 0 else 1)).sum())
            edges = contract_edges(edges, step.labels, groups.numel())
        masks.add(layer.instance, layer.instance_nodes, layer.semantic, layer.semantic_nodes)
        line["nodes"].append(layer.instance_nodes.sizes.numel())
        line["semantic_candidates"].append(semantic.labels.numel())
        line["undecided"].append([step.undecided for step in layer.steps])
        line["exact"].append([step.exact for step in layer.steps])
    line["elected"] = elected = elected + sum(int(nodes.errors[index].isinf().sum()) for nodes, index in masks.found())
    line["floor_gflop"] = {"moments": voters * d * d / 1e9, "votes": 4 * voters * d * elected / 1e9}
    return line


def measure_products(device: torch.device) -> float:
    """Return the GFLOP/s of a large float32 matrix product."""
    side = PRODUCT_SIDE[device.type]
    a, b = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    multiply(a, b)
    return 2 * side**3 / 1e9 / measure(lambda: multiply(a, b), 5, device)[0]["seconds"]["min"]


def count_launches(call: Callable[[], object], device: torch.device) -> Line:
    """Return how many kernels and copies a call puts on the GPU and how often it waits for it; nothing on the CPU."""
    if device.type != "cuda":
        return {}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize(device)
    return sort_events(
        (event.name, event.device_type.name == "CUDA", event.time_range.elapsed_us()) for event in profile.events()
    )


def sort_events(events: Iterable[tuple[str, bool, float]]) -> Line:
    """Count the events of a profile, given as names, whether they took place on the GPU, and microseconds."""
    counts: Line = {"kernels": 0, "copies": 0, "synchronisations": 0, "device_seconds": 0.0}
    for name, on_device, microseconds in events:
        if on_device:
            counts["copies" if name.startswith(("Memcpy", "Memset")) else "kernels"] += 1
            counts["device_seconds"] += microseconds / 1e6
        elif name.startswith("cuda") and "Synchronize" in name:
            counts["synchronisations"] += 1
    return counts


def read_memory(device: torch.device) -> Line:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return {"memory_before_mib": round(torch.cuda.memory_allocated(device) / MIB, 1)}
    return {"memory_before_mib": _read_status("VmRSS")}


def read_peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / MIB, 1)
    # Not ru_maxrss: a new process inherits it from the one that started it.
    return _read_status("VmHWM")


def _read_status(name: str) -> float | None:
    """A figure of /proc/self/status in MiB; None where there is no such file."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(f"{name}:")), None)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_case(path: Path) -> Line:
    """Run one case in this process."""
    case = torch.load(path, weights_only=True)
    torch.set_num_threads(case["threads"])
    settle_heap()
    method, repeats = case["method"], case["repeats"]
    if method in ("uniap", "batch"):
        features = case.pop("features").to(case["device"])
        return (time_uniap if method == "uniap" else time_batch)(features, repeats)
    return time_baseline(method, case["features"], repeats)


def start_case(method: str, features: torch.Tensor, arguments: argparse.Namespace) -> Line:
    """Run one case in a new process."""
    threads = str(arguments.threads)
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        case = {name: getattr(arguments, name) for name in ("threads", "repeats", "device")}
        torch.save(case | {"method": method, "features": features}, path)
        words = [sys.executable, str(Path(__file__).resolve()), "--case", str(path)]
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_map(kind: str, side: int, methods: Iterable[str], arguments: argparse.Namespace) -> float | None:
    """Print the lines of one map and return UniAP's median seconds, None if it does not run."""
    pictures = arguments.picture or [None]
    maps = [
        make_features(kind, side, arguments.width, side + 1000 * i, pictures[i % len(pictures)])
        for i in range(max(1, arguments.batch))
    ]
    about = {"map": kind, "side": side, "width": arguments.width, "threads": arguments.threads}
    about["adjacent_cosine_5_50_95"] = adjacent_cosines(maps[0])
    seconds = None
    for method in methods:
        features = torch.cat(maps) if method == "batch" else maps[0]
        line = {"method": NAMES[method], **about}
        line["device"] = arguments.device if method in ("uniap", "batch") else "cpu"
        line["load_before"] = round(os.getloadavg()[0], 2)
        if method == "batch":
            line["batch"] = arguments.batch
        line.update(start_case(method, features, arguments))
        if method == "uniap":
            seconds = line["seconds"]["median"]
        elif seconds is not None and method != "batch":
            line["uniap_times_faster"] = line["seconds"]["median"] / seconds
        print(json.dumps(line), flush=True)
    return seconds


def choose_methods(side: int, arguments: argparse.Namespace) -> list[str]:
    """Return what runs at this size; at a size that was not asked for, what it is there for."""
    chosen = [m for m in arguments.methods if side <= LARGEST.get(m, side)]
    if side not in arguments.sizes:
        return [m for m in chosen if m in ("uniap", "cuts")]
    return [*chosen, "batch"] if arguments.batch > 1 else chosen


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="tokens per side, multiples of 4")
    parser.add_argument("--maps", nargs="+", choices=SYNTHETIC, default=list(SYNTHETIC))
    parser.add_argument(
        "--picture", type=Path, nargs="+", help="photographs: times a random ViT's features of them too"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all that can run")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="above 1: times a batch against its pictures one by one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where UniAP runs")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if any(side < 4 or side % 4 for side in arguments.sizes):
        parser.error(f"--sizes must be positive multiples of 4, got {arguments.sizes}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if importlib.util.find_spec("sklearn") is None:
        message = "Ward clustering needs scikit-learn: pip install scikit-learn"
        if "ward" in (arguments.methods or ()):
            parser.error(message)
        if not arguments.case and not arguments.methods:
            print(json.dumps({"method": NAMES["ward"], "skipped": message}), flush=True)
            arguments.methods = [m for m in METHODS if m != "ward"]
    # UniAP first: the others' lines give their ratio to it.
    arguments.methods = sorted(set(arguments.methods or METHODS), key=METHODS.index)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.case:
        print(json.dumps(run_case(arguments.case)))
        return
    torch.set_num_threads(arguments.threads)
    sides = sorted(set(arguments.sizes))
    extra = {LARGEST["cuts"]} if "cuts" in arguments.methods and sides[-1] > LARGEST["cuts"] else set()
    growth = {}
    for kind in [*arguments.maps, *(["picture"] if arguments.picture else [])]:
        seconds = {
            side: run_map(kind, side, choose_methods(side, arguments), arguments) for side in sorted({*sides, *extra})
        }
        low, high = sides[0], sides[-1]
        if low < high and seconds[low] is not None:
            growth[kind] = seconds[high] / high**2 / (seconds[low] / low**2)
    if growth:
        print(json.dumps({"summary": "UniAP, cost per token", "from": sides[0], "to": sides[-1], "times": growth}))


if __name__ == "__main__":
    main()
