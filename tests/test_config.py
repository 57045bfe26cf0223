from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from s2uniseg_d2.config import known_keys, load_config, read_yaml

ALL_CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"))
# those of transfer are Detectron2's models with our backbone: tests/engine/test_transfer.py
CONFIGS = [path for path in ALL_CONFIGS if path.parent.name != "transfer"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_recipe_loads(path):
    load_config(path)


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=lambda path: path.name)
def test_every_recipe_says_what_it_is_for(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header
    if path.name not in ("base.yaml", "tiny.yaml", "base_vit_adapter_fpn.yaml"):
        text = "\n".join(header)
        for part in ("Purpose:", "Command:", "Time:", "emory", "Expected:"):
            assert part in text, f"{path.name} lacks {part}"
        assert "@@" not in text


def test_every_key_is_read_somewhere(repository):
    cfg = get_cfg()
    ours = set(known_keys(load_config(""))) - set(known_keys(cfg))
    assert len(ours) > 40
    sources = "\n".join(
        path.read_text() for path in (repository / "s2uniseg_d2").rglob("*.py") if path.name != "config.py"
    )
    unread = [key for key in ours if not re.search(rf"\.{key.rsplit('.', 1)[-1]}\b", sources)]
    assert not unread


def test_the_defaults_are_the_papers():
    cfg = load_config("")
    assert tuple(cfg.MODEL.UNIAP.TAUS) == (0.8, 0.7, 0.6, 0.5, 0.4)
    assert (cfg.MODEL.UNIAP.SIGMA, cfg.MODEL.UNIAP.OMEGA_F, cfg.MODEL.UNIAP.OMEGA_S) == (0.07, 0.6, 0.4)
    assert (cfg.MODEL.QUERY_HEAD.SEM_QUERIES, cfg.MODEL.QUERY_HEAD.INS_QUERIES) == (50, 150)
    assert cfg.MODEL.QUERY_SD.NUM_PROTOTYPES == 512
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (16, 160000)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS) == (6.25e-4, 10000)
    assert (cfg.INPUT.VIEWS.NUM, tuple(cfg.INPUT.VIEWS.SCALE)) == (2, (0.05, 0.4))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.UNIAP.TAU", "0.1"], r"MODEL.UNIAP.TAU is unknown; near it: .*MODEL.UNIAP.TAUS"),
        (["SOLVER.MAX_ITER"], "pairs of KEY VALUE"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER must be at least 1, got 0"),
        (["SOLVER.BASE_LR", "fast"], "overrides: "),
        (["INPUT.VIEWS.SIZE_PX", "100"], "INPUT.VIEWS.SIZE_PX must be a positive multiple of 32, got 100"),
        (["INPUT.VIEWS.SCALE", "(0.5, 0.4)"], "INPUT.VIEWS.SCALE must be"),
        (["MODEL.UNIAP.FEATURE_STRIDE", "8"], "must be 4 or 16, got 8"),
        (["MODEL.LOSS.KINDS", "()"], r"MODEL\.LOSS\.KINDS must be instance, semantic or both, got \(\)"),
        (
            ["MODEL.LOSS.KINDS", "('stuff',)"],
            r"MODEL\.LOSS\.KINDS must be instance, semantic or both, got \('stuff',\)",
        ),
        (["MODEL.LOSS.MIN_CELLS", "0"], r"MODEL\.LOSS\.MIN_CELLS must be at least 1, got 0"),
        (["MODEL.LOSS.NO_OBJECT_WEIGHT", "0.0"], r"MODEL\.LOSS\.NO_OBJECT_WEIGHT must lie in \(0, 1\], got 0\.0"),
        (["MODEL.VIT_ADAPTER.NORM", "foo"], "must be BN, SyncBN or GN, got 'foo'"),
        (["MODEL.BACKBONE.NAME", "ResNet"], "must be ViTAdapterBackbone, got 'ResNet'"),
        (["SOLVER.BASE_LR_END", "1.0"], "SOLVER.BASE_LR_END must not be above SOLVER.BASE_LR"),
        (["SOLVER.ACCUMULATION_STEPS", "0"], "SOLVER.ACCUMULATION_STEPS must be at least 1, got 0"),
        (["TEST.PRECISE_BN.ENABLED", "True"], "TEST.PRECISE_BN.ENABLED is not supported"),
        (["TEST.TASKS", "('everything',)"], "TEST.TASKS must be among"),
    ],
)
def test_bad_overrides_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("", overrides)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist: .*no\.yaml"):
        load_config(tmp_path / "no.yaml")
    for text, message in [
        ("MODEL: [", "cannot be read"),
        ("- 1\n", "must hold KEY: VALUE lines, got list"),
        ("MODEL:\n  UNKNOWN: 1\n", "UNKNOWN"),
        ("_BASE_: bad.yaml\n", "its own _BASE_"),
    ]:
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config(path)


def test_base_files_are_overlaid(tmp_path):
    (tmp_path / "below.yaml").write_text("SOLVER:\n  MAX_ITER: 7\n  BASE_LR: 0.5\n")
    (tmp_path / "above.yaml").write_text("_BASE_: below.yaml\nSOLVER:\n  MAX_ITER: 9\n")
    assert read_yaml(tmp_path / "above.yaml") == {"SOLVER": {"MAX_ITER": 9, "BASE_LR": 0.5}}


@pytest.mark.parametrize("depth", ["direct", "base"])
def test_a_config_file_cannot_run_code(tmp_path, depth):
    touched = tmp_path / "touched"
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"SEED: !!python/object/apply:os.system ['touch {touched}']\n")
    path = bad
    if depth == "base":
        path = tmp_path / "above.yaml"
        path.write_text("_BASE_: bad.yaml\n")
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(path)
    assert not touched.exists()


def test_the_model_of_a_run_replaces_that_of_a_protocol(tmp_path):
    run = load_config("", ["MODEL.VIT.DEPTH", "3", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "w.pth", "SEED", "9"])
    run.MODEL.INFERENCE.OBJECT_THRESHOLD = 0.25
    (tmp_path / "config.yaml").write_text(run.dump())
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text("MODEL:\n  VIT:\n    DEPTH: 7\n  INFERENCE:\n    OVERLAP_THRESHOLD: 0.5\nTEST:\n  CASES: 5\n")
    cfg = load_config(protocol, ["MODEL.VIT.NUM_HEADS", "2"], model_from=tmp_path / "config.yaml")
    assert (cfg.MODEL.VIT.DEPTH, cfg.MODEL.VIT.NUM_HEADS, cfg.TEST.CASES) == (3, 2, 5)
    assert (cfg.MODEL.INFERENCE.OBJECT_THRESHOLD, cfg.MODEL.INFERENCE.OVERLAP_THRESHOLD) == (0.25, 0.5)
    assert (cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.SEED) == ("cuda", "", 0)


def test_a_foreign_model_beside_the_weights_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL:\n  RESNETS_NOT_KNOWN: 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml: .*RESNETS_NOT_KNOWN"):
        load_config("", model_from=tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("MODEL: 3\n")
    with pytest.raises(ValueError, match=r"config\.yaml must hold a MODEL with keys, got int"):
        load_config("", model_from=tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["TEST.CENTER_CROP_PX", "320"], r"TEST\.CENTER_CROP_PX must lie in \[0, TEST\.SHORT_SIDE_PX = 0\], got 320"),
        (["TEST.MATCH_IOU", "1.0"], r"TEST\.MATCH_IOU must lie in \[0, 1\), got 1\.0"),
        (["TEST.BACKEND", "fast"], "TEST.BACKEND must be pycocotools or faster_coco_eval, got 'fast'"),
        (["TEST.PANOPTIC_VOTE", "boxes"], "TEST.PANOPTIC_VOTE must be pixels or masks, got 'boxes'"),
        (
            ["TEST.FLIP", "True", "MODEL.INFERENCE.PREDICTOR", "uniap"],
            r"TEST\.FLIP and TEST\.CRF need MODEL\.INFERENCE\.PREDICTOR",
        ),
        (["EVALUATION.PART_PICTURES", "-1"], r"EVALUATION\.PART_PICTURES must not be negative, got -1"),
    ],
)
def test_settings_of_an_evaluation_that_cannot_be_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("", overrides)
