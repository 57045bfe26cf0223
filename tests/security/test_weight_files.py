"""No file of weights runs anything, whoever reads it; what it wanted to run is named."""

import logging
import os
import pickle
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from s2uniseg_d2.core.tensor_files import TensorFileError, read_tensor_file
from s2uniseg_d2.core.trunks.weights import read_trunk_checkpoint
from s2uniseg_d2.data.shards import index_shard
from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
from s2uniseg_d2.engine.checkpoint_files import damage_of
from s2uniseg_d2.labeling.encoder import build_encoder
from s2uniseg_d2.labeling.merge import _open_table
from tests.exploits import PICKLES, WEIGHT_FILES, Call, object_array, touch, zipped
from tests.tiny import tiny_config


def load_into_model(path):
    SafeCheckpointer(nn.Linear(2, 2)).resume_or_load(str(path), resume=False)


def go_on(path):
    (path.parent / "last_checkpoint").write_text(path.name)
    SafeCheckpointer(nn.Linear(2, 2), str(path.parent)).resume_or_load("", resume=True)


READERS = {
    "checkpointer": load_into_model,
    "resume": go_on,
    "trunk": read_trunk_checkpoint,
    "encoder": lambda path: build_encoder(tiny_config(), str(path)),
}
# suffix and content of a file, and what must be said of it
FILES = {
    **{f"pkl {name}": (".pkl", PICKLES[name], name) for name in PICKLES},
    **{f"zip {name}": (".pth", lambda target, name=name: zipped(target, name), name) for name in PICKLES},
    **{f"raw {name}": (".pth", PICKLES[name], name) for name in PICKLES},
    "legacy": (".pth", WEIGHT_FILES["legacy"], "posix.system"),
    "legacy_tar": (".pth", WEIGHT_FILES["legacy_tar"], "PyTorch's first format"),
    "torchscript": (".pth", WEIGHT_FILES["torchscript"], "TorchScript archive, which holds a program"),
}


@pytest.mark.parametrize("kind", FILES)
def test_an_exploit_is_refused_by_name(tmp_path, kind):
    suffix, make, wanted = FILES[kind]
    target, path = tmp_path / "touched", tmp_path / f"weights{suffix}"
    path.write_bytes(make(target))
    for name, read in READERS.items():
        # a run goes on from files with sums alone, and says so of all others before it looks inside
        reason = "cut short or overwritten" if name == "resume" and not kind.startswith(("zip", "torchs")) else wanted
        with pytest.raises(ValueError, match=re.escape(reason)) as error:
            read(path)
        assert "weights_only" not in str(error.value)  # PyTorch's advice to read it unsafely is not passed on
        assert path.name in str(error.value)
    assert not target.exists()


def test_a_sound_file_is_read_by_all(tmp_path):
    weights = nn.Linear(2, 2).state_dict()
    torch.save({"model": weights}, tmp_path / "new.pth")
    torch.save({"model": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    arrays = {name: value.numpy() for name, value in weights.items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    (tmp_path / "caffe2.pkl").write_bytes(pickle.dumps({"blobs": arrays, "cfg": "NAME: x"}))
    for name in ("new.pth", "old.pth", "zoo.pkl", "caffe2.pkl"):
        model = nn.Linear(2, 2)
        SafeCheckpointer(model).load(str(tmp_path / name))
        assert torch.equal(model.weight, weights["weight"])


def test_big_endian_arrays_become_tensors(tmp_path):
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": {"w": np.arange(3, dtype=">f4")}, "n": [1]}))
    assert read_tensor_file(tmp_path / "zoo.pkl")["model"]["w"].tolist() == [0, 1, 2]


def test_a_file_that_grows_when_unpacked_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 26))
    with pytest.raises(TensorFileError, match=r"its 65,\d+ bytes unpack to 67,108,864"):
        read_tensor_file(tmp_path / "bomb.pth")


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/w.pth", "https://127.0.0.1:9/w.pth", "detectron2://w.pkl"])
def test_the_checkpointer_fetches_nothing_without_a_hash(place):
    with pytest.raises(ValueError, match="an address of weights must "):
        SafeCheckpointer(nn.Linear(2, 2)).load(place)


def test_a_question_mark_is_part_of_a_name(tmp_path):
    # Detectron2 takes what follows for a query, and would read the other file
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "a.pth?b")
    (tmp_path / "a.pth").write_bytes(PICKLES["posix.system"](tmp_path / "touched"))
    SafeCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "a.pth?b"))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"weight": torch.zeros(2, 2), "bias": 3}, "got int under 'bias'"),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(2).to_sparse()}, "must hold dense tensors"),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(2), 3: torch.zeros(2)}, "under 3"),
        ([1], "must hold tensors by name, got list"),
    ],
)
def test_what_is_no_dense_tensor_is_refused(tmp_path, state, reason):
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth .*{reason}"):
        SafeCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "w.pth"))


def test_states_of_another_run_are_refused(tmp_path):
    model = nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "optimizer": {"no": "state"}}, tmp_path / "w.pth")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"w\.pth cannot be loaded into this model \(KeyError"):
        SafeCheckpointer(model, optimizer=optimizer).load(str(tmp_path / "w.pth"))


def test_an_optimizer_of_another_size_is_refused(tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    states = torch.optim.SGD(other.parameters(), 0.1).state_dict()
    torch.save({"model": model.state_dict(), "optimizer": states}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth cannot be loaded into this model \(ValueError: loaded state dict"):
        SafeCheckpointer(model, optimizer=torch.optim.SGD(model.parameters(), 0.1)).load(str(tmp_path / "w.pth"))


def test_damage_of_names_an_exploit(tmp_path):
    (tmp_path / "w.pth").write_bytes(zipped(tmp_path / "touched"))
    assert "posix.system" in damage_of(tmp_path / "w.pth")
    assert not (tmp_path / "touched").exists()


def test_an_index_of_objects_is_made_anew(tmp_path, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        (tmp_path / "1.png").write_bytes(b"x")
        tar.add(tmp_path / "1.png", "1.png")
    target = tmp_path / "touched"
    index = tmp_path / ".a.tar.index.npz"
    np.savez(index, stamp=np.array([Call(os.system, touch(target))], dtype=object))
    with caplog.at_level(logging.WARNING):
        assert list(index_shard(str(tmp_path / "a.tar")).names) == ["1.png"]
    assert "cannot be read" in caplog.text
    assert not target.exists()


def test_embeddings_of_objects_are_refused(tmp_path):
    target = tmp_path / "touched"
    (tmp_path / "part.embeddings.npy").write_bytes(object_array(target).read_bytes())
    info = {"annotations": 1, "settings": {"embedding_dim": 4}}
    with pytest.raises(ValueError, match=r"embeddings .* cannot be read: .*[Oo]bject"):
        _open_table(tmp_path / "part.json", info)
    assert not target.exists()
