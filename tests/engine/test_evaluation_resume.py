"""An evaluation that is stopped goes on to the same figures and files, in one process or in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from detectron2.utils import comm

import train_net
from s2uniseg_d2.config import load_config
from s2uniseg_d2.engine.evaluation import evaluate
from s2uniseg_d2.engine.evaluation_parts import EvaluationParts, KeptPicture
from s2uniseg_d2.engine.prediction import Predictor
from s2uniseg_d2.engine.trainer import Trainer
from tests.engine.evaluating import FOREIGN_WARNINGS, make_scenes, read, save_run, words
from tests.tiny import tiny_words

pytestmark = FOREIGN_WARNINGS

PICTURES = 5
SETTINGS = {
    "MODEL__INFERENCE__OBJECT_THRESHOLD": 0.0,
    "MODEL__INFERENCE__OVERLAP_THRESHOLD": 0.0,
    "INPUT__TEST_LONGEST_PX": 64,
    "EVALUATION__PART_PICTURES": 2,
    "TEST__MATCH_IOU": 0.0,
    "TEST__CASES": 0,
    "TEST__MAX_DETS": "(1, 10, 100, 1000)",
}


@pytest.fixture(scope="module")
def scenes(repository, tmp_path_factory):
    return make_scenes(repository, tmp_path_factory.mktemp("made"), PICTURES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("trained") / "run")


def configure(scenes, weights, output, **more):
    settings = {**SETTINGS, "DATASETS__TEST": f"('scenes:{scenes}',)", "OUTPUT_DIR": output, "MODEL__WEIGHTS": weights}
    output.mkdir(exist_ok=True)
    return load_config("", tiny_words(**{**settings, **more}))


def load_model(cfg):
    model = build_model(cfg)
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"])
    return model


def evaluate_to(output, scenes, weights, *, resume=False, **more):
    cfg = configure(scenes, weights, output, **more)
    return evaluate(cfg, load_model(cfg), resume=resume)


def written(output):
    """All that is left of an evaluation but times, the log of figures and the folder's own name."""
    files = {path.relative_to(output): path for path in sorted(output.rglob("*")) if path.is_file()}
    timed = ("results.json", "metrics.json", "tables.md")
    contents = {str(name): path.read_bytes() for name, path in files.items() if name.name not in timed}
    return contents | {"results.json": json.dumps(read(output)["results"])}


@pytest.fixture(scope="module")
def undisturbed(scenes, weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    evaluate_to(output, scenes, weights)
    return written(output)


def test_it_gives_what_detectron2s_own_loop_gives(scenes, weights, tmp_path):
    found = evaluate_to(tmp_path / "out", scenes, weights)
    cfg = configure(scenes, weights, tmp_path / "other", TEST__PICTURES=0)
    expected = Trainer.test(cfg, load_model(cfg))
    assert found.keys() == expected.keys() == {"segm_agnostic", "segm_mapped", "sem_seg_mapped", "panoptic_mapped"}
    for group, figures in expected.items():
        assert found[group] == pytest.approx(figures, nan_ok=True, abs=1e-9)


def stop_after(monkeypatch, count):
    """Let the model fail before it has predicted more than ``count`` pictures."""
    predict, calls = Predictor.__call__, []

    def fail(self, batch):
        calls.append(batch)
        if len(calls) > count:
            raise RuntimeError("stopped for the test")
        return predict(self, batch)

    monkeypatch.setattr(Predictor, "__call__", fail)
    return calls


def test_a_stopped_evaluation_goes_on_to_the_same(scenes, weights, undisturbed, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError, match="stopped for the test"):
            evaluate_to(output, scenes, weights)
    kept = [json.loads(path.read_text()) for path in sorted((output / "parts").glob("*/*.json"))]
    assert [sorted(part) for part in kept] == [["0", "1"], ["2"]]

    with pytest.raises(ValueError, match="add --resume to go on"):
        evaluate_to(output, scenes, weights)
    with monkeypatch.context() as patch:
        calls = stop_after(patch, PICTURES)
        evaluate_to(output, scenes, weights, resume=True)
    assert len(calls) == PICTURES - 3
    assert written(output) == undisturbed
    assert read(output)["pictures"][f"scenes:{scenes}"]["kept_from_a_stopped_run"] == 3
    assert "panoptic/panoptic_majority.json" in "".join(undisturbed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TEST__MATCH_IOU": 0.5}, "TEST.MATCH_IOU was 0.0 and is 0.5"),
        ({"MODEL__INFERENCE__OVERLAP_THRESHOLD": 0.3}, "MODEL.INFERENCE.OVERLAP_THRESHOLD was 0.0 and is 0.3"),
        ({"weights": True}, "weights was '[0-9a-f]{64}' and is '[0-9a-f]{64}'"),
        ({"scenes": True}, "pictures of scenes:"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_was_made_with_something_else_is_refused(
    repository, scenes, weights, tmp_path, monkeypatch, change, message
):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(RuntimeError):
            evaluate_to(tmp_path / "out", scenes, weights)
    change = dict(change)
    if change.pop("weights", False):
        weights = save_run(tmp_path / "other", seed=1)
    if change.pop("scenes", False):
        scenes = make_scenes(repository, tmp_path / "made", 2)
    with pytest.raises(ValueError, match=f"were made with something else: .*{message}"):
        evaluate_to(tmp_path / "out", scenes, weights, resume=True, **change)


def test_nothing_kept_starts_anew_and_says_so(scenes, weights, undisturbed, tmp_path, caplog):
    evaluate_to(tmp_path / "out", scenes, weights, resume=True, EVALUATION__KEEP_PARTS=True)
    assert "nothing is kept" in caplog.text
    assert len(list((tmp_path / "out" / "parts").glob("*/*.json"))) == 3
    # kept on request, the pictures need no model any more
    again = evaluate_to(tmp_path / "out", scenes, weights, resume=True)
    assert not (tmp_path / "out" / "parts").exists()
    assert written(tmp_path / "out") == undisturbed
    assert again


def test_parts_may_be_switched_off(tmp_path):
    parts = EvaluationParts(tmp_path / "parts", {}, 0)
    parts.open(resume=False)
    part = parts.part("a")
    part.add(0, KeptPicture(0.1, {}))
    part.flush()
    assert not (tmp_path / "parts").exists()


def test_a_damaged_part_is_named(tmp_path):
    parts = EvaluationParts(tmp_path, {"a": (1, 2)}, 1)
    parts.open(resume=False)
    parts.part("set").add(4, KeptPicture(0.5, {"agnostic": {"image_id": 9}}))
    parts.open(resume=True)
    assert parts.part("set").load() == {4: KeptPicture(0.5, {"agnostic": {"image_id": 9}})}
    (tmp_path / "set" / "00000004.json").write_text("{")
    with pytest.raises(ValueError, match=r"00000004\.json of a stopped evaluation cannot be read"):
        parts.part("set").load()


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same(repository, weights, tmp_path, capsys):
    scenes = make_scenes(repository, tmp_path / "made", 30)
    tasks = {"TEST__TASKS": "('agnostic', 'semantic')"}
    config = repository / "configs" / "tiny.yaml"
    command = [sys.executable, str(repository / "train_net.py")]
    stopped = words(config, weights, scenes, tmp_path / "out", **tasks)
    with subprocess.Popen([*command, *stopped], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").glob("parts/*/*.json")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert train_net.main(stopped) == 1
    assert "add --resume to go on" in capsys.readouterr().err
    assert train_net.main(["--resume", *stopped]) == 0
    kept = read(tmp_path / "out")["pictures"][f"scenes:{scenes}"]["kept_from_a_stopped_run"]
    assert 1 <= kept < 30
    overrides = words(config, weights, scenes, tmp_path / "whole", **tasks)[3:]
    (tmp_path / "whole").mkdir()
    cfg = load_config(config, overrides, model_from=weights.parent / "config.yaml")
    evaluate(cfg, load_model(cfg))
    assert read(tmp_path / "out")["results"] == read(tmp_path / "whole")["results"]


def work(rank, folder, scenes, weights):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    for output, resume in (("two", False), ("mixed", True)):
        results = evaluate_to(folder / output, scenes, weights, resume=resume)
        assert bool(results) == (rank == 0)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_go_on_where_one_stopped(
    scenes, weights, undisturbed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(RuntimeError):
            evaluate_to(tmp_path / "mixed", scenes, weights)
    torch.multiprocessing.spawn(work, (tmp_path, scenes, weights), nprocs=2)
    assert written(tmp_path / "two") == undisturbed
    assert written(tmp_path / "mixed") == undisturbed
    assert read(tmp_path / "mixed")["pictures"][f"scenes:{scenes}"]["kept_from_a_stopped_run"] == 4
    assert read(tmp_path / "two")["pictures"][f"scenes:{scenes}"]["predicted"] == PICTURES
