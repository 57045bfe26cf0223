"""Exported weights give equal features in Detectron2, in timm and in this project."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from safetensors import safe_open
from safetensors.torch import load_file

from s2uniseg_d2.core.tensor_files import file_digest
from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
from s2uniseg_d2.engine.checkpoint_files import tensor_digest
from s2uniseg_d2.engine.weight_export import export_weights
from tests.engine.others import transfer_config
from tests.tiny import tiny_config
from tools.export_weights import main

PICTURES = torch.linspace(-2, 2, 2 * 3 * 64 * 96).sin().view(2, 3, 64, 96)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model whose teacher and student differ, and its run's folder."""
    torch.manual_seed(0)
    cfg = tiny_config()
    model = build_model(cfg).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    folder = tmp_path_factory.mktemp("run")
    torch.save({"model": model.state_dict(), "iteration": 7, "trainer": {}}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return model, folder / "model_final.pth"


def read_tensors(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("branch", ["teacher", "student"])
def test_timm_takes_the_vit_strictly_and_sees_the_same(trained, tmp_path, suffix, branch):
    model, checkpoint = trained
    path = tmp_path / f"vit.{suffix}"
    assert main([str(checkpoint), str(path), "--what", "vit", "--branch", branch]) == 0
    encoder = model.teacher_backbone if branch == "teacher" else model.backbone
    arguments = json.loads(read_metadata(path)["timm_arguments"])
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **arguments).eval()
    plain.load_state_dict(read_tensors(path), strict=True)
    with torch.no_grad():
        expected = encoder.trunk.vit(PICTURES)
        assert torch.equal(plain.forward_features(PICTURES), expected)
        # timm's own reader takes the file too
        named = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, checkpoint_path=str(path), **arguments
        )
        assert torch.equal(named.eval().forward_features(PICTURES), expected)


def read_metadata(path):
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return file.metadata()
    return torch.load(path, weights_only=True)["metadata"]


# It is Detectron2 that reads here, and PyTorch 2.4 to 2.5 warn of how.
@pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`:FutureWarning")
@pytest.mark.parametrize("what", ["teacher-backbone", "student-backbone"])
@pytest.mark.parametrize("place", ["in an FPN", "alone", "by its full name"])
def test_detectron2_takes_the_encoder_and_sees_the_same(trained, tmp_path, what, place):
    model, checkpoint = trained
    path, prefix = tmp_path / "encoder.pth", "backbone.bottom_up." if place == "by its full name" else ""
    export_weights(checkpoint, path, what=what, prefix=prefix)
    cfg = transfer_config("semantic_fpn")
    if place == "alone":
        cfg.MODEL.BACKBONE.NAME = "ViTAdapterBackbone"
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    other = build_model(cfg).eval()
    DetectionCheckpointer(other).load(str(path))
    backbone = other.backbone if place == "alone" else other.backbone.bottom_up
    source = model.teacher_backbone if what == "teacher-backbone" else model.backbone
    with torch.no_grad():
        expected = source(PICTURES)
        for name, value in backbone(PICTURES).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("what", ["student", "model"])
def test_this_project_takes_the_student_and_the_whole_model(trained, tmp_path, what):
    model, checkpoint = trained
    export_weights(checkpoint, tmp_path / "part.pth", what=what)
    torch.manual_seed(5)
    other = build_model(tiny_config())
    before = {name: value.clone() for name, value in other.state_dict().items()}
    SafeCheckpointer(other).load(str(tmp_path / "part.pth"))
    for name, value in other.state_dict().items():
        taken = what == "model" or not name.startswith(("teacher_", "center."))
        assert torch.equal(value, (model.state_dict() if taken else before)[name]), name


def test_the_file_says_what_it_is(trained, tmp_path, capsys):
    _, checkpoint = trained
    path = tmp_path / "new" / "encoder.safetensors"
    assert main([str(checkpoint), str(path)]) == 0
    metadata = read_metadata(path)
    assert metadata["source_sha256"] == file_digest(checkpoint)
    assert metadata["tensors_sha256"] == tensor_digest(read_tensors(path))
    assert (metadata["what"], metadata["source"], metadata["iteration"]) == ("teacher-backbone", "model_final.pth", "7")
    assert (metadata["channels"], json.loads(metadata["pixel_mean"])) == ("RGB", [123.675, 116.28, 103.53])
    printed = capsys.readouterr().out
    assert f"{len(read_tensors(path))} tensors" in printed
    assert metadata["tensors_sha256"] in printed


def test_what_is_no_model_of_ours_is_refused_and_leaves_the_old_file(trained, tmp_path, capsys):
    path = tmp_path / "out.pth"
    path.write_text("old")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    assert main([str(tmp_path / "other.pth"), str(path)]) == 1
    assert (
        "state must be that of an S2UniSeg, with tensors named teacher_backbone.trunk.vit.*" in capsys.readouterr().err
    )
    assert main([str(tmp_path / "absent.pth"), str(path)]) == 1
    assert path.read_text() == "old"
    with pytest.raises(ValueError, match=r"output must end in \.pth or \.safetensors, got '.*out\.bin'"):
        export_weights(trained[1], tmp_path / "out.bin")
    with pytest.raises(ValueError, match="what must be one of"):
        export_weights(trained[1], path, what="decoder")
    with pytest.raises(ValueError, match="branch must be teacher or student, got 'both'"):
        export_weights(trained[1], path, what="vit", branch="both")
