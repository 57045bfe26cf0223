"""What is not finite is found in files of any shape."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch

from s2uniseg_d2.core.tensor_files import broken_tensors, file_digest, read_tensor_file, refuse_broken
from tests.exploits import WEIGHT_FILES

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_every_kind_of_number_is_looked_at(dtype, value):
    tensor = torch.ones(3, 2, dtype=dtype)
    assert broken_tensors({"a": tensor}) == []
    tensor[2, 1] = value
    assert broken_tensors({"a": tensor}) == ["a"]


def test_names_tell_the_way():
    bad = torch.tensor(NAN)
    content = {
        "model": {"w": bad, "n": torch.arange(3)},
        "optimizer": {"state": {0: {"exp_avg": bad}}},
        "l": [1, (bad,)],
    }
    assert broken_tensors(content) == ["model.w", "optimizer.state.0.exp_avg", "l.1.0"]


def test_lists_that_hold_themselves_end():
    content = [torch.tensor(INF)]
    content.append(content)
    assert broken_tensors(content) == ["0"]


def test_a_few_values_of_a_large_shape_take_no_memory(tmp_path):
    torch.save({"a": torch.tensor([NAN]).expand(2**20, 2**20), "b": torch.ones(1).expand(2**20, 2**20)}, tmp_path / "w")
    assert broken_tensors(read_tensor_file(tmp_path / "w")) == ["a"]


@pytest.mark.parametrize("place", [0, 2])
def test_each_of_the_few_values_of_a_large_shape_is_looked_at(place):
    few = torch.ones(3)
    few[place] = NAN
    assert broken_tensors({"a": few.as_strided((2**20, 3), (0, 1))}) == ["a"]


def test_a_part_of_a_larger_storage_stands_for_itself():
    whole = torch.tensor([NAN, 1.0, 2.0])
    assert broken_tensors({"a": whole[1:]}) == []


def test_what_has_no_dense_values_is_passed_over():
    content = {
        "meta": torch.empty(2, device="meta"),
        "sparse": torch.tensor([NAN]).to_sparse(),
        "text": "nan",
        "n": NAN,
    }
    assert broken_tensors(content) == []


def test_the_first_are_named():
    with pytest.raises(ValueError, match=r"file w holds NaN or infinity in 4 of 5 tensors \(0, 1, 2\): the training"):
        refuse_broken({str(i): torch.tensor(NAN if i < 4 else 1.0) for i in range(5)}, "file w")
    refuse_broken({"a": torch.ones(2)}, "file w")


def test_the_digest_is_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "w").write_bytes(content)
    assert file_digest(tmp_path / "w") == hashlib.sha256(content).hexdigest()


def test_a_torchscript_archive_is_named(tmp_path):
    (tmp_path / "w").write_bytes(WEIGHT_FILES["torchscript"](tmp_path / "touched"))
    with pytest.raises(ValueError, match="TorchScript archive, which holds a program"):
        read_tensor_file(tmp_path / "w")
    assert not (tmp_path / "touched").exists()


def test_arrays_of_a_pickle_become_tensors(tmp_path):
    content = {"model": {"a": np.arange(3.0, dtype=">f4"), "names": ["x"]}, "epoch": 2}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    found = read_tensor_file(tmp_path / "w.pkl")
    assert torch.equal(found["model"]["a"], torch.arange(3.0))
    assert (found["model"]["names"], found["epoch"]) == (["x"], 2)
