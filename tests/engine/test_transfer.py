"""Our backbone in a training script of Detectron2's own style that knows nothing of this project."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from PIL import Image

from s2uniseg_d2.engine.optimizer import build_optimizer
from s2uniseg_d2.engine.transfer import (
    _choose_optimizer,
    _launch_installed,
    _refuse_unsafe,
)
from s2uniseg_d2.transfer import main
from tests.engine.others import NAMES, TRANSFER_CONFIGS, transfer_config, transfer_words, write_defaults

# what Detectron2's tools/train_net.py comes down to
SCRIPT = """
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch


def setup(args):
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    trainer = DefaultTrainer(setup(args))
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url,
           args=(args,))
"""


def write_coco(root: Path) -> None:
    """Three pictures under the names of COCO's data sets: one box each, and stuff around it."""
    for folder in ("train2017", "panoptic_stuff_train2017", "annotations"):
        (root / "coco" / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(3):
        pixels = generator.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        pixels[16:48, 16:64] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(root / "coco" / "train2017" / f"{i}.jpg")
        stuff = np.full((64, 96), 1 + i, np.uint8)
        stuff[16:48, 16:64] = 0
        Image.fromarray(stuff).save(root / "coco" / "panoptic_stuff_train2017" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 96})
        outline = [16, 16, 64, 16, 64, 48, 16, 48]
        thing = {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [16, 16, 48, 32], "iscrowd": 0}
        annotations.append({**thing, "area": 48 * 32, "segmentation": [outline]})
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def run_script(code: list[str], folder: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(folder),
        "PYTHONPATH": str(repository),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    assert "s2uniseg" not in SCRIPT
    path = tmp_path_factory.mktemp("others") / "plain_script.py"
    path.write_text(SCRIPT)
    write_coco(path.parent)
    return path


DRIVER = """
import json, sys
from s2uniseg_d2.transfer import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0
"""


@pytest.mark.slow
def test_a_script_of_detectron2s_style_trains_every_config(script, repository):
    def line(name):
        path = str(TRANSFER_CONFIGS / f"{name}_vit_adapter.yaml")
        return [str(script), "--config-file", path, *transfer_words(OUTPUT_DIR=f"runs/{name}")]

    first, *others = map(line, NAMES)
    done = run_script(["-m", "s2uniseg_d2.transfer", *first], script.parent, repository)
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_script(["-c", DRIVER, json.dumps(others)], script.parent, repository)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in NAMES:
        run = script.parent / "runs" / name
        record = [json.loads(text) for text in (run / "metrics.json").read_text().splitlines()]
        assert record[-1]["iteration"] == 1
        assert 0 < record[-1]["total_loss"] < 100
        trained = torch.load(run / "model_final.pth", weights_only=True)
        torch.manual_seed(0)
        reference = build_model(transfer_config(name)).state_dict()
        assert set(trained["model"]) == set(reference)
        # AdamW keeps two moments of every parameter that has had a gradient: the ViT, the adapter and the heads have
        optimizer = trained["trainer"]["_trainer"]["optimizer"]
        groups = optimizer["param_groups"]
        assert all("betas" in group for group in groups)
        seen = sum(len(group["params"]) for group in groups)
        assert len(optimizer["state"]) == seen == len(list(build_model(transfer_config(name)).parameters()))


def test_the_command_refuses_what_is_no_script(tmp_path, capsys):
    assert main([]) == 2
    assert "usage: python -m s2uniseg_d2.transfer SCRIPT" in capsys.readouterr().err
    assert main(["-h"]) == 0
    assert main([str(tmp_path / "nowhere.py"), "--num-gpus", "2"]) == 2
    assert "the script must be a file, got" in capsys.readouterr().err


def test_config_files_that_would_run_code_are_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text(f"SEED: !!python/object/apply:os.system ['touch {tmp_path / 'touched'}']\n")
    (tmp_path / "above.yaml").write_text("_BASE_: bad.yaml\n")
    (tmp_path / "good.yaml").write_text("SEED: 7\nVERSION: 2\n")
    merge, cfg = _refuse_unsafe(CfgNode.merge_from_file), get_cfg()
    for name in ("bad.yaml", "above.yaml"):
        with pytest.raises(ValueError, match=rf"{name} or a _BASE_ of it holds more than plain values"):
            merge(cfg, str(tmp_path / name))
    assert not (tmp_path / "touched").exists()
    merge(cfg, str(tmp_path / "good.yaml"))
    assert cfg.SEED == 7


def test_the_optimizer_is_chosen_by_name():
    def detectron2s(cfg, model):
        return "SGD of Detectron2"

    choose, model = _choose_optimizer(detectron2s), torch.nn.Linear(2, 2)
    cfg = transfer_config()
    assert isinstance(choose(cfg, model), torch.optim.AdamW)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    with pytest.raises(ValueError, match=r"CLIP_GRADIENTS\.ENABLED must be False with SOLVER\.OPTIMIZER AdamW"):
        choose(cfg, model)
    cfg.SOLVER.OPTIMIZER = "SGD"
    assert choose(cfg, model) == "SGD of Detectron2"
    cfg.SOLVER.OPTIMIZER = "Lion"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER must be one of SGD, AdamW, got 'Lion'"):
        choose(cfg, model)


def test_processes_that_launch_starts_know_the_keys_too(tmp_path):
    started = []

    def launch(main_func, count, args=()):
        started.append(multiprocessing.get_context("spawn").Process(target=main_func, args=args))

    _launch_installed(launch)(write_defaults, 1, args=(str(tmp_path / "defaults"),))
    started[0].start()
    started[0].join(timeout=600)
    # the keys are there, and what stood in Detectron2's defaults stands there still
    assert (tmp_path / "defaults").read_text() == "vit_base_patch8_224.dino GeneralizedRCNN BGR"


@pytest.mark.parametrize("name", NAMES)
def test_the_trunk_sees_the_colours_it_was_trained_on(name, tmp_path):
    cfg = transfer_config(name)
    model = build_model(cfg).eval()
    seen = []
    trunk = model.backbone.bottom_up.trunk
    trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[...] = (250, 100, 10)  # red, green, blue
    Image.fromarray(pixels).save(tmp_path / "orange.png")
    item = DatasetMapper(cfg, is_train=False, augmentations=[])({"file_name": str(tmp_path / "orange.png")})
    with torch.no_grad():
        output = model([{**item, "height": 64, "width": 96}])[0]
    assert output
    expected = (torch.tensor([250, 100, 10]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(seen[0][0, :, 30, 30], expected, atol=1e-4, rtol=0)


def test_other_colours_than_those_of_the_weights_are_named_in_the_log(tmp_path, caplog):
    torch.save(build_model(transfer_config()).backbone.bottom_up.trunk.vit.state_dict(), tmp_path / "vit.pth")
    dino = {"MODEL__VIT__NAME": "vit_tiny_patch16_224.augreg_in21k", "MODEL__VIT__WEIGHTS": tmp_path / "vit.pth"}
    with caplog.at_level(logging.WARNING, logger="s2uniseg_d2"):
        build_model(transfer_config(**dino, INPUT__FORMAT="BGR"))
    assert "INPUT.FORMAT is 'BGR', but the ViT's weights were trained on RGB" in caplog.text
    assert "MODEL.PIXEL_MEAN is [123.675, 116.28, 103.53], but the weights of vit_tiny_patch16_224" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="s2uniseg_d2"):
        build_model(
            transfer_config(**dino, MODEL__PIXEL_MEAN=[127.5, 127.5, 127.5], MODEL__PIXEL_STD=[127.5, 127.5, 127.5])
        )
    assert not caplog.records


def test_frozen_blocks_do_not_learn_and_the_rest_does():
    model = build_model(transfer_config(MODEL__VIT__FROZEN_BLOCKS=2))
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    prefix = "backbone.bottom_up.trunk.vit."
    assert all(name.startswith(prefix) for name in names)
    inside = {name.removeprefix(prefix) for name in names}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc2.bias"} <= inside
    assert not any(name.startswith(("blocks.2", "blocks.3", "norm")) for name in inside)
    vit = model.backbone.bottom_up.trunk.vit
    assert [vit.blocks[i].drop_path1.drop_prob > 0 for i in (1, 2)] == [False, True]
    whole = build_model(transfer_config(MODEL__VIT__FROZEN_BLOCKS=-1)).backbone.bottom_up.trunk.vit
    assert not any(parameter.requires_grad for parameter in whole.parameters())
    with pytest.raises(ValueError, match=r"blocks must lie in \[-1, 4\], the depth of .*, got 5"):
        build_model(transfer_config(MODEL__VIT__FROZEN_BLOCKS=5))


def test_rates_fall_from_block_to_block():
    cfg = transfer_config(
        SOLVER__BASE_LR=1.0, SOLVER__VIT_LR_FACTOR=0.5, SOLVER__VIT_LAYER_DECAY=0.5, MODEL__VIT__DEPTH=4
    )
    model = build_model(cfg)
    names = {id(value): name for name, value in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    rates = {names[id(value)]: group["lr"] for group in groups for value in group["params"]}
    vit = "backbone.bottom_up.trunk.vit."
    assert [rates[f"{vit}blocks.{i}.norm1.weight"] for i in range(4)] == [0.0625, 0.125, 0.25, 0.5]
    assert rates[f"{vit}norm.weight"] == 0.5
    assert rates[f"{vit}pos_embed"] == rates[f"{vit}patch_embed.proj.weight"] == 0.03125
    assert rates["backbone.bottom_up.trunk.up.weight"] == rates["backbone.fpn_lateral2.weight"] == 1.0
