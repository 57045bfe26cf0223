from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from s2uniseg_d2.core.labelers.uniap import UniAP
from tests.benchmarks import bm_uniap
from tests.benchmarks.uniap_maps import SYNTHETIC, make_features

UNIAP_KEYS = {"masks", "nodes", "edges", "undecided", "exact", "floor_seconds", "floor_share", "gflop_per_second"}
COMMON_KEYS = {"method", "map", "side", "width", "device", "seconds", "peak_memory_mib", "adjacent_cosine_5_50_95"}


@pytest.fixture
def run_here(monkeypatch, capsys, tmp_path):
    """The benchmark without new processes: importing torch takes seconds in each."""

    def start_case(method, features, arguments):
        case = {name: getattr(arguments, name) for name in ("threads", "repeats", "device")}
        torch.save(case | {"method": method, "features": features}, tmp_path / "case.pt")
        return bm_uniap.run_case(tmp_path / "case.pt")

    def run(*words: str) -> list[dict]:
        threads = str(torch.get_num_threads())
        monkeypatch.setattr(bm_uniap, "start_case", start_case)
        monkeypatch.setattr(bm_uniap, "PRODUCT_SIDE", {"cpu": 64})
        monkeypatch.setattr(sys, "argv", ["bm", "--width", "16", "--repeats", "2", "--threads", threads, *words])
        bm_uniap.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_command_prints_a_line_per_case_from_processes_of_their_own():
    words = [
        sys.executable,
        bm_uniap.__file__,
        *["--sizes", "8", "--width", "16", "--maps", "scene", "--methods", "uniap", "--threads", "1"],
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line.keys() >= COMMON_KEYS | UNIAP_KEYS
    assert line["method"] == "UniAP"
    # The peak has the high-water mark of a process that imported torch, not of this one.
    assert 100 < line["memory_before_mib"] <= line["peak_memory_mib"] < 2000


def test_lines_of_all_methods_maps_and_sizes(run_here):
    pytest.importorskip("sklearn")
    lines = run_here("--sizes", "8", "12", "--batch", "2")
    summary = lines.pop()
    methods = set(bm_uniap.NAMES.values())
    cases = [(line["map"], line["side"], line["method"]) for line in lines]
    assert sorted(cases) == sorted((k, s, m) for k in SYNTHETIC for s in (8, 12) for m in methods)
    times = {case: line["seconds"] for case, line in zip(cases, lines, strict=True)}
    for line in lines:
        assert line.keys() >= COMMON_KEYS | (UNIAP_KEYS if line["method"] == "UniAP" else set())
        assert 0 < line["seconds"]["min"] <= line["seconds"]["median"] <= line["seconds"]["max"]
        if line["method"] == "UniAP, batch":
            ratio = line["seconds"]["median"] / line["one_by_one_seconds"]["median"]
            assert line["batch_over_one_by_one"] == pytest.approx(ratio)
        elif line["method"] != "UniAP":
            ours = times[line["map"], line["side"], "UniAP"]["median"]
            assert line["uniap_times_faster"] == pytest.approx(line["seconds"]["median"] / ours)
    assert summary["from"] == 8
    assert summary["to"] == 12
    growth = {k: times[k, 12, "UniAP"]["median"] / times[k, 8, "UniAP"]["median"] * 64 / 144 for k in SYNTHETIC}
    assert summary["times"] == pytest.approx(growth)


def test_picture_map(run_here, tmp_path):
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "a.png")
    lines = run_here("--sizes", "8", "--methods", "uniap", "--picture", str(tmp_path / "a.png"))
    assert [line["map"] for line in lines] == [*SYNTHETIC, "picture"]


def test_sixty_is_added_for_the_cuts_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bm", "--sizes", "32", "64", "128", "256", "--batch", "2"])
    arguments = bm_uniap.parse_arguments()
    arguments.methods = list(bm_uniap.METHODS)
    chosen = {side: bm_uniap.choose_methods(side, arguments) for side in (32, 60, 64, 128, 256)}
    assert chosen[32] == ["uniap", "greedy", "scan", "cuts", "ward", "batch"]
    assert chosen[60] == ["uniap", "cuts"]
    assert chosen[64] == ["uniap", "greedy", "scan", "ward", "batch"]
    assert chosen[128] == ["uniap", "ward", "batch"]
    assert chosen[256] == ["uniap", "batch"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "10"], "multiples of 4, got [10]"),
        (["--device", "cuda"], "finds no GPU"),
        (["--methods", "ward"], "pip"),
    ],
)
def test_bad_arguments_are_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bm", *words])
    monkeypatch.setattr(bm_uniap.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bm_uniap.parse_arguments()
    assert message in capsys.readouterr().err


def test_without_scikit_learn_the_other_methods_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bm"])
    monkeypatch.setattr(bm_uniap.importlib.util, "find_spec", lambda name: None)
    assert bm_uniap.parse_arguments().methods == ["uniap", "greedy", "scan", "cuts"]
    assert "pip install scikit-learn" in json.loads(capsys.readouterr().out)["skipped"]


def test_layers_are_described():
    # Columns of two equal tokens each, the halves opposite: layer 1 makes two regions, and nothing changes after it.
    tokens = torch.tensor([1.0, 1, -1, -1]).expand(3, 3, 4).clone() + 0.01 * torch.arange(4)
    line = bm_uniap.describe_layers(tokens, UniAP().iterate_layers(tokens))
    assert line["nodes"] == [2] * 5
    assert line["edges"] == [3 * 3 + 2 * 4, *[1] * 4]
    assert line["semantic_candidates"] == [2] * 5
    assert line["elected"] == 2
    assert line["floor_gflop"] == {"moments": 12 * 3 * 3 / 1e9, "votes": 4 * 12 * 3 * 2 / 1e9}


def test_events_are_counted_by_kind():
    events = [
        ("gemm", True, 3.0),
        ("Memcpy DtoH", True, 3.0),
        ("cudaStreamSynchronize", False, 3.0),
        ("aten::mm", False, 3.0),
        ("add", True, 3.0),
    ]
    counts = bm_uniap.sort_events(events)
    assert counts.pop("device_seconds") == pytest.approx(9e-6)
    assert counts == {"kernels": 2, "copies": 1, "synchronisations": 1}


@pytest.mark.parametrize("side", [32, 64])
def test_scene_keeps_its_regions_and_its_cosines(side):
    features = make_features("scene", side, 768, side)
    low, middle, high = bm_uniap.adjacent_cosines(features)
    assert 0.5 <= low <= middle <= high <= 0.95
    # The same place of the same scene: the tokens differ by their noise.
    coarse = make_features("scene", 32, 768, 32)
    cosine = torch.cosine_similarity(features[0, :, :: side // 32, :: side // 32], coarse[0], dim=0)
    assert cosine.median() > 0.6


def test_maps_are_reproducible_and_picture_needs_a_file():
    for kind in SYNTHETIC:
        assert torch.equal(make_features(kind, 8, 4, 1), make_features(kind, 8, 4, 1))
    with pytest.raises(ValueError, match="picture must name a photograph"):
        make_features("picture", 8, 4, 1, None)
    with pytest.raises(KeyError):
        make_features("other", 8, 4, 1)


def test_peak_is_read_from_the_process_where_there_is_proc():
    if Path("/proc/self/status").exists():
        device = torch.device("cpu")
        assert 0 < bm_uniap.read_memory(device)["memory_before_mib"] <= bm_uniap.read_peak(device)
