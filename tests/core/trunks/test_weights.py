from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import uuid

import pytest
import torch
from torch import Tensor

from s2uniseg_d2.core.trunks.weights import WeightReport, load_trunk_weights, read_trunk_checkpoint


@pytest.fixture
def source(make_vit, scatter_weights):
    vit = make_vit()
    scatter_weights(vit)
    return vit


@pytest.fixture
def save(tmp_path):
    def write(payload: object, name: str = "weights.pth") -> str:
        torch.save(payload, tmp_path / name)
        return str(tmp_path / name)

    return write


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def full_checkpoint(source, student_shift: float = 1.0) -> dict[str, object]:
    """Laid out as DINO's training script writes it."""
    state = source.state_dict()
    student = {name: value + student_shift for name, value in state.items()}
    head = {"mlp.0.weight": torch.randn(4, 32), "last_layer.weight_g": torch.ones(5, 1)}
    return {
        "student": {**prefixed("module.backbone.", student), **prefixed("module.head.", head)},
        "teacher": {**prefixed("backbone.", state), **prefixed("head.", head)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_base", patch_size=8, momentum_teacher=0.996),
        "dino_loss": {"center": torch.zeros(1, 5)},
        "fp16_scaler": {"scale": 1.0},
    }


def assert_holds(vit, state: dict[str, Tensor], shift: float = 0.0) -> None:
    own = vit.state_dict()
    assert all(torch.equal(own[name], value + shift) for name, value in state.items())


LAYOUTS = {
    "bare": lambda state: state,
    "ordered": lambda state: collections.OrderedDict(state),
    "module": lambda state: prefixed("module.", state),
    "backbone": lambda state: prefixed("backbone.", state),
    "module.backbone": lambda state: prefixed("module.backbone.", state),
    "state_dict": lambda state: {"state_dict": prefixed("backbone.", state), "meta": {"epoch": 3}},
    "model": lambda state: {"model": state, "iteration": 3},
    "teacher alone": lambda state: {"teacher": state},
    "both encoders in one model": lambda state: {
        "model": {
            **prefixed("backbone.trunk.vit.", {k: v + 1 for k, v in state.items()}),
            **prefixed("teacher.vit.", state),
        }
    },
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_all_layouts_load_alike(make_vit, source, save, layout):
    vit = make_vit()
    report = load_trunk_weights(vit, save(LAYOUTS[layout](source.state_dict())))
    assert_holds(vit, source.state_dict())
    assert set(report.loaded) == set(source.state_dict())
    assert report[1:] == ((), (), (), ())
    assert report.summary().startswith(f"loaded {len(report.loaded)} of the ViT's {len(report.loaded)} tensors")


@pytest.mark.parametrize(("branch", "shift"), [("teacher", 0.0), ("student", 1.0)])
def test_full_checkpoints_give_the_branch_that_is_asked_for(make_vit, source, save, branch, shift):
    vit = make_vit()
    report = load_trunk_weights(vit, save(full_checkpoint(source)), branch=branch)
    assert_holds(vit, source.state_dict(), shift)
    assert report.unexpected == ()  # the head is outside of the prefix


def test_a_teacher_is_the_default(source, save):
    tensors = read_trunk_checkpoint(save(full_checkpoint(source)))
    assert torch.equal(tensors["cls_token"], source.cls_token)


def test_a_branch_that_is_unknown_or_absent_is_refused(source, save):
    path = save({"teacher": source.state_dict()})
    with pytest.raises(ValueError, match="branch must be one of teacher, student, got 'ema'"):
        read_trunk_checkpoint(path, branch="ema")
    with pytest.raises(ValueError, match=r"branch must be one that '.*weights.pth' holds \(teacher\), got 'student'"):
        read_trunk_checkpoint(path, branch="student")


def test_safetensors_load_alike(make_vit, source, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)
    vit = make_vit()
    load_trunk_weights(vit, path)
    assert_holds(vit, source.state_dict())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights.safetensors' .* cannot be read as safetensors"):
        read_trunk_checkpoint(path)


def test_legacy_file_format_loads(make_vit, source, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
    vit = make_vit()
    load_trunk_weights(vit, path)
    assert_holds(vit, source.state_dict())


def test_published_adapter_checkpoints_are_read_and_reported(make_vit, make_adapter, source, save):
    adapter = make_adapter(source, zero_init="none")
    state = {name.removeprefix("vit."): value for name, value in adapter.state_dict().items()}
    for name in ("cls_token", "norm.weight", "norm.bias"):
        del state[name]
    path = save({"state_dict": {**prefixed("backbone.", state), "decode_head.conv.weight": torch.zeros(1)}})
    tensors = read_trunk_checkpoint(path)
    assert set(tensors) == set(state)
    report = load_trunk_weights(make_vit(), path)
    assert set(report.missing) == {"cls_token", "norm.weight", "norm.bias"}
    assert "spm.fc1.weight" in report.unexpected
    assert "missing in the file: " in report.summary()


def test_report_groups_are_disjoint_and_keep_values(make_vit, source, save):
    state = dict(source.state_dict())
    del state["norm.bias"]
    state["head.weight"] = torch.zeros(3, 32)
    state["cls_token"] = torch.zeros(1, 2, 32)
    vit = make_vit()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    report = load_trunk_weights(vit, save(state))
    assert report.missing == ("norm.bias",)
    assert report.unexpected == ("head.weight",)
    assert report.mismatched == ("cls_token",)
    assert len(report.loaded) == len(before) - 2
    assert torch.equal(vit.cls_token, before["cls_token"])
    assert torch.equal(vit.norm.bias, before["norm.bias"])
    text = report.summary()
    assert all(name in text for name in ("norm.bias", "head.weight", "cls_token"))


def test_summary_shortens_long_lists():
    names = tuple(f"t{index}" for index in range(9))
    text = WeightReport(loaded=("a",), missing=names, unexpected=(), mismatched=()).summary()
    assert text.startswith("loaded 1 of the ViT's 10 tensors; missing in the file: t0")
    assert "t0, t1, t2, t3, t4 and 4 more" in text
    assert "unexpected in the file: none" in text


def test_positions_of_another_square_grid_are_resampled_as_timm_does(make_vit, plain_timm, source, save):
    path = save(source.state_dict())
    vit = make_vit(img_size=96).eval()
    report = load_trunk_weights(vit, path)
    assert report.resampled == ("pos_embed",)
    assert report.mismatched == ()
    assert "resampled to the ViT's grid: pos_embed" in report.summary()
    images = torch.randn(1, 3, 96, 96)
    # timm resamples to the picture's grid on its way: the same function of the same numbers
    assert torch.equal(vit(images), plain_timm(source).forward_features(images))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_change_nothing(make_vit, source, save, value):
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    state["blocks.1.attn.qkv.weight"][3, 4] = value
    target = make_vit()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"weights\.pth' holds NaN or infinity in 1 of \d+ tensors .blocks\.1\.attn\.qkv"
    ):
        load_trunk_weights(target, save(state))
    assert_holds(target, before)


@pytest.mark.parametrize("tokens", [1, 1 + 60, 0])
def test_positions_without_a_square_grid_are_mismatched(make_vit, source, save, tokens):
    state = dict(source.state_dict())
    state["pos_embed"] = torch.zeros(1, tokens, 32)
    report = load_trunk_weights(make_vit(), save(state))
    assert report.mismatched == ("pos_embed",)
    assert report.resampled == ()


def test_another_models_width_is_refused_and_changes_nothing(make_vit, source, save):
    path = save(source.state_dict())
    vit = make_vit(embed_dim=64)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"weights.pth' does not fit 'vit_tiny_patch16_224': 0 of .*; shapes: [a-z].* \(1, 1, 32\) for"
    ):
        load_trunk_weights(vit, path)
    assert_holds(vit, before)


def test_less_than_half_of_the_numbers_is_refused(make_vit, source, save):
    state = {
        name: value for name, value in source.state_dict().items() if not name.startswith(("blocks.2", "blocks.3"))
    }
    load_trunk_weights(make_vit(), save(state))
    few = {name: value for name, value in state.items() if not name.startswith("blocks.1")}
    with pytest.raises(ValueError, match=r"does not fit .*of another shape: none\)$"):
        load_trunk_weights(make_vit(), save(few))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (
            {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
            "2 tensors under the names conv1.weight, fc.bias",
        ),
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "no tensors under the names epoch, optimizer"),
        ({}, "no tensors under the names none"),
        ([torch.zeros(1)], "an object of type list"),
        (torch.zeros(3), "an object of type Tensor"),
        # a Swin has the patches but no plain blocks
        (
            {"model": {"patch_embed.proj.weight": torch.zeros(1), "layers.0.blocks.0.norm1.weight": torch.zeros(1)}},
            "2 tens",
        ),
        ({"model": "weights"}, "no tensors under the names model"),
    ],
)
def test_files_without_a_vit_are_refused_by_name_and_content(save, payload, found):
    with pytest.raises(ValueError, match=rf"'.*resnet.pth' must hold a plain ViT .* found {found}"):
        read_trunk_checkpoint(save(payload, "resnet.pth"))


def test_several_vits_in_one_file_are_refused(source, save):
    state = source.state_dict()
    path = save({**prefixed("image.", state), **prefixed("video.", state)})
    with pytest.raises(ValueError, match=r"found not one ViT for the branch 'student' but 2, below image\., video\."):
        read_trunk_checkpoint(path, branch="student")


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_first_of_many_foreign_objects_are_named(tmp_path, protocol):
    def save(content):
        torch.save(content, tmp_path / "weights.pth", pickle_protocol=protocol)
        return str(tmp_path / "weights.pth")

    foreign = [fractions.Fraction(1), datetime.timedelta(1), uuid.UUID(int=1), decimal.Decimal(1)]
    with pytest.raises(ValueError, match=r"fractions\.Fraction, datetime\.timedelta, uuid\.UUID and 1 more: objects"):
        read_trunk_checkpoint(save({"model": foreign}))
    with pytest.raises(ValueError, match=r"asks for fractions\.Fraction, datetime\.timedelta: objects"):
        read_trunk_checkpoint(save({"model": foreign[:2]}))


def test_objects_that_run_code_are_refused(save, capsys):
    path = save({"teacher": Harmful()})
    with pytest.raises(ValueError, match="objects that are not safe to load"):
        read_trunk_checkpoint(path)
    assert "never run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="objects that are not safe to load"):
        read_trunk_checkpoint(save({"model": {}, "when": datetime.timedelta(1)}))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"hello, world\n", b"<html><body>404</body></html>", b"PK\x03\x04rest", b"\x80\x02]."],
)
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.pth'"):
        read_trunk_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused_by_name(source, tmp_path, share, zipped):
    path = tmp_path / "cut.pth"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut.pth' \(.* bytes\) cannot be read"):
        read_trunk_checkpoint(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(ValueError, match=r"path must name a checkpoint file, got .*, where there is no file"):
            read_trunk_checkpoint(path)


def test_a_report_without_resampled_tensors_says_nothing_of_them():
    report = WeightReport(loaded=("a",), missing=(), unexpected=(), mismatched=())
    assert report.resampled == ()
    assert "resampled" not in report.summary()
