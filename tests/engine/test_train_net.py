"""The command as a user runs it, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_coding

from tests.tiny import tiny_words, write_pictures


def command(repository, *words, check=True):
    result = subprocess.run(
        [sys.executable, str(repository / "train_net.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def write_truth(folder, path):
    """One object a picture: the disc that ``write_pictures`` draws."""
    images, annotations = [], []
    for i, file in enumerate(sorted(folder.glob("*.png"))):
        with Image.open(file) as picture:
            width, height = picture.size
        y, x = np.mgrid[:height, :width]
        disc = ((y - height / 2) ** 2 + (x - width / 3) ** 2 < (height / 5) ** 2).astype(np.uint8)
        coded = mask_coding.encode(np.asfortranarray(disc))
        box = [float(value) for value in mask_coding.toBbox(coded)]
        coded["counts"] = coded["counts"].decode()
        images.append({"id": i + 1, "file_name": file.name, "height": height, "width": width})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": 1,
                "segmentation": coded,
                "bbox": box,
                "area": int(disc.sum()),
                "iscrowd": 0,
            }
        )
    categories = [{"id": 1, "name": "disc"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def truth(pictures):
    return write_truth(pictures, pictures.parent / "truth.json")


@pytest.fixture(scope="module")
def trained(repository, pictures, truth, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    words = tiny_words(
        DATASETS__TRAIN=f"('folder:{pictures}',)",
        DATASETS__TEST=f"('coco:{truth}:{pictures}',)",
        OUTPUT_DIR=output,
        VIS_PERIOD=2,
        SOLVER__CHECKPOINT_PERIOD=2,
    )
    result = command(repository, *words)
    return words, output, result


def figures(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_a_run_leaves_its_files(trained):
    _, output, _ = trained
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    for name in ("metrics.json", "config.yaml", "log.txt", "model_final.pth", "model_0000001.pth", "model_initial.pth"):
        assert name in names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {"pictures/views_0000001.png", "pictures/views_0000002.png", "pictures/views_0000004.png"} <= names
    assert sum(name.startswith("pictures/coco-") for name in names) == 1


def test_the_last_line_says_what_to_do_next(trained):
    _, output, result = trained
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"train_net.py: done; the weights are {output / 'model_final.pth'}; ")
    assert f"python -m s2uniseg_d2.demo --weights {output / 'model_final.pth'} --input PICTURES" in last


def test_neither_a_pipe_nor_the_log_gets_colours(trained):
    _, output, result = trained
    assert "MAX_ITER: 4" in result.stdout  # the config, which Detectron2 colours
    assert "\x1b" not in result.stdout + result.stderr
    log = (output / "log.txt").read_text()
    assert "MAX_ITER: 4" in log
    assert "\x1b" not in log


def test_a_run_records_losses_labels_and_results(trained):
    _, output, _ = trained
    recorded = {key for line in figures(output) for key in line}
    assert {
        "total_loss",
        "loss_query_sd",
        "loss_dice_ins",
        "labels/instance_masks",
        "labels/semantic_level_4",
    } <= recorded
    assert {"loss_mask_sem_0", "loss_objectness_ins_1", "match/ins_masks", "objectness/sem_matched"} <= recorded
    assert {"query_sd/teacher_entropy", "query_sd/student_clusters", "spread/ins_views", "grad_norm"} <= recorded
    assert {"teacher_momentum", "teacher_temp", "student_temp", "weight_decay", "lr", "time", "data_time"} <= recorded
    assert {"seconds/load", "seconds/teacher", "seconds/labels", "seconds/backward", "seconds/momentum"} <= recorded
    assert {"memory/resident_gib", "iterations_per_second", "eta_seconds"} <= recorded
    assert "segm_agnostic/AR@100" in recorded


def test_evaluation_of_the_saved_weights_gives_the_same_figures(repository, trained, tmp_path):
    words, output, _ = trained
    words = [*words, "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", output / "model_final.pth"]
    command(repository, "--eval-only", *words)
    again = figures(tmp_path)[-1]["segm_agnostic"]
    recorded = {key: value for line in figures(output) for key, value in line.items()}
    during = {key: recorded[f"segm_agnostic/{key}"] for key in again}
    assert during
    # an evaluation's lines are strict JSON, which has no nan
    again = {key: float("nan") if value is None else value for key, value in again.items()}
    assert again == pytest.approx(during, nan_ok=True, abs=1e-9)


def test_resume_goes_on_where_it_stopped(repository, trained, tmp_path):
    words, output, _ = trained
    import shutil

    shutil.copytree(output, tmp_path / "out")
    command(repository, "--resume", *words, "OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_ITER", 6)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Starting training from iteration 4" in log
    assert (tmp_path / "out" / "model_0000005.pth").is_file()


def test_without_a_gpu_it_says_so_and_uses_the_cpu(repository, pictures, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    words = tiny_words(DATASETS__TRAIN=f"('folder:{pictures}',)", OUTPUT_DIR=tmp_path, MODEL__DEVICE="cuda")
    result = command(repository, "--num-gpus", 2, *words, "SOLVER.MAX_ITER", 1)
    assert "No GPU is available: MODEL.DEVICE cuda becomes cpu" in result.stdout + result.stderr
    assert "--num-gpus 2, but no GPU is available" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL.NOTHING", "1"], "MODEL.NOTHING is unknown"),
        (["SOLVER.MAX_ITER", "-3"], "SOLVER.MAX_ITER must be at least 1, got -3"),
        (["DATASETS.TRAIN", "()"], "training needs DATASETS.TRAIN"),
        (["DATASETS.TRAIN", "('folder:/nowhere',)"], "/nowhere"),
        (["DATASETS.TRAIN", "('nothing_known',)"], "nothing_known"),
        (["MODEL.WEIGHTS", "/nowhere.pth"], "MODEL.WEIGHTS names a file that does not exist: /nowhere.pth"),
        (["MODEL.VIT.WEIGHTS", "/nowhere.pth"], "/nowhere.pth"),
        (["MODEL.UNIAP.TAUS", "(0.5, 0.6)"], "taus must decrease strictly"),
        (["MODEL.VIT.NAME", "vit_enormous"], "vit_enormous"),
        (["--eval-only"], "--eval-only needs MODEL.WEIGHTS"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_ends_in_one_sentence(repository, pictures, tmp_path, words, message):
    flags = [word for word in words if word.startswith("--")]
    overrides = [word for word in words if not word.startswith("--")]
    base = tiny_words(DATASETS__TRAIN=f"('folder:{pictures}',)", OUTPUT_DIR=tmp_path)
    result = command(repository, *flags, *base, *overrides, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("train_net.py: ")
    assert message in last
    assert "Traceback" not in result.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(repository, pictures, tmp_path):
    words = tiny_words(
        DATASETS__TRAIN=f"('folder:{pictures}',)", OUTPUT_DIR=tmp_path, MODEL__LOSS__QUERY_SD_WEIGHT="1e39"
    )
    result = command(repository, *words, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "iteration 0: loss_query_sd = inf" in last
    assert "stopped before the optimizer step; tools/replay_batch.py" in last
    assert "rank_0.pth runs it again; there is no checkpoint in" in last
    assert "Traceback" not in result.stderr + result.stdout


def test_pictures_that_cannot_be_read_are_counted_and_stop_the_run_in_one_sentence(repository, tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=1)
    for i in range(4):
        (folder / f"bad{i}.png").write_bytes(b"no picture" * i)
    words = tiny_words(DATASETS__TRAIN=f"('folder:{folder}',)", OUTPUT_DIR=tmp_path / "out", INPUT__MAX_UNREADABLE=2)
    result = command(repository, *words, "SOLVER.MAX_ITER", 20, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "3 pictures could not be read, more than INPUT.MAX_UNREADABLE = 2 allows" in last
    assert "skipped (1 of at most 2 in this process)" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_an_evaluation_leaves_the_record_of_its_run_alone(repository, trained):
    words, output, _ = trained
    before = (output / "config.yaml").read_text()
    command(repository, "--eval-only", *words, "MODEL.WEIGHTS", output / "model_final.pth", "TEST.PICTURES", 0)
    assert (output / "config.yaml").read_text() == before
    assert (output / "eval" / "metrics.json").is_file()


def test_a_second_run_does_not_overwrite_the_first(repository, trained):
    words, _, _ = trained
    result = command(repository, *words, check=False)
    assert result.returncode == 1
    assert "already holds a run: add --resume" in result.stderr
