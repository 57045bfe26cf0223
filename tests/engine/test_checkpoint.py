from __future__ import annotations

import os
import pickle

import pytest
import torch
from torch import nn

from s2uniseg_d2.engine.checkpoint import SafeCheckpointer


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def load(model, path):
    return SafeCheckpointer(model, "").resume_or_load(str(path), resume=False)


def test_saved_weights_come_back(model, tmp_path):
    SafeCheckpointer(model, str(tmp_path)).save("model_final")
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    load(other, tmp_path / "model_final.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_a_bare_state_dict_is_taken(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    load(other, tmp_path / "bare.pth")
    assert torch.equal(other[0].weight, model[0].weight)


def test_weights_of_another_model_are_refused(model, tmp_path):
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(2, 2)}, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match=r"dino.pth does not fit this model: 0 of 4 tensors .*MODEL.VIT.WEIGHTS"):
        load(model, tmp_path / "dino.pth")


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([1, 2], protocol=2)], ids=["empty", "text", "pickle"])
def test_no_checkpoint_is_refused_by_name(model, tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pth"):
        load(model, tmp_path / "w.pth")


def test_a_checkpoint_cut_short_is_refused_by_name(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"w\.pth is no readable PyTorch checkpoint"):
        load(model, tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_none_is_taken(model, tmp_path, value):
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    state["1.bias"][0] = value
    before = model[0].weight.clone()
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds NaN or infinity in 1 of 4 tensors .1\.bias.: the training div"):
        load(model, tmp_path / "w.pth")
    assert torch.equal(model[0].weight, before)


def test_a_tensor_of_no_name_here_may_hold_anything(model, tmp_path):
    torch.save({"model": {**model.state_dict(), "other": torch.tensor(float("nan"))}}, tmp_path / "w.pth")
    load(model, tmp_path / "w.pth")


def test_a_final_checkpoint_that_a_stop_prevented_is_made_up_for(model, tmp_path):
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    checkpointer.copy_final(7)
    assert list(tmp_path.iterdir()) == []
    checkpointer.save("model_0000007", iteration=7)
    checkpointer.copy_final(8)
    assert not (tmp_path / "model_final.pth").exists()
    checkpointer.copy_final(7)
    assert (tmp_path / "model_final.pth").read_bytes() == (tmp_path / "model_0000007.pth").read_bytes()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    (tmp_path / "model_final.pth").write_bytes(b"there")
    checkpointer.copy_final(7)
    assert (tmp_path / "model_final.pth").read_bytes() == b"there"


def test_loading_runs_no_code(model, tmp_path):
    torch.save({"model": Exploit(tmp_path / "touched")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth is no readable PyTorch checkpoint"):
        load(model, tmp_path / "bad.pth")
    assert not (tmp_path / "touched").exists()
