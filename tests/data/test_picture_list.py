from __future__ import annotations

import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from s2uniseg_d2.data import resolve_dataset


@pytest.fixture
def write_list(tmp_path, write_noise):
    """A function that writes a list beside two pictures and returns its name as a data set."""
    write_noise("train/1.png")
    write_noise("train/#2.png")

    def write(text):
        (tmp_path / "list.txt").write_bytes(text.encode() if isinstance(text, str) else text)
        return f"list:{tmp_path}/list.txt"

    return write


def test_records_follow_the_list(write_list, tmp_path):
    name = resolve_dataset(write_list("# two pictures\n\n./train/#2.png\r\n  train/1.png  \n"))
    records = DatasetCatalog.get(name)
    assert records == [
        {"file_name": f"{tmp_path}/train/#2.png", "image_id": 0},
        {"file_name": f"{tmp_path}/train/1.png", "image_id": 1},
    ]
    assert MetadataCatalog.get(name).evaluator_type == "none"


def test_paths_may_be_whole_and_count_from_the_list(write_list, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "train")
    write_list(f"{tmp_path}/train/1.png\n")
    (record,) = DatasetCatalog.get(resolve_dataset("list:../list.txt"))
    assert os.path.samefile(record["file_name"], tmp_path / "train/1.png")


def test_a_changed_list_is_read_again(write_list, tmp_path):
    name = write_list("train/1.png\n")
    assert len(DatasetCatalog.get(resolve_dataset(name))) == 1
    write_list("train/1.png\ntrain/../train/#2.png\n")
    assert len(DatasetCatalog.get(resolve_dataset(name))) == 2
    (tmp_path / "list.txt").unlink()
    with pytest.raises(ValueError, match=r"cannot read picture list .*list\.txt: No such file"):
        resolve_dataset(name)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("# nothing\n\n", r"picture list .*list\.txt names no picture$"),
        ("a/1.png\ntrain/1.png\nb/2.png\n", r"names 3 pictures, of which 2 are missing in .*: a/1\.png, b/2\.png$"),
        ("./train/1.png\ntrain/1.png\ntrain/#2.png\n./train/1.png\n", r"names 4 .* twice, such as \./train/1\.png$"),
        (b"\xff\xfe\x00", r"picture list .* must be UTF-8 text, got"),
        ("train/1.png\ntrain/1.png\n", r"names 2 pictures, some of them twice, such as train/1\.png"),
        (
            "train/1.png\ntrain/7.png\n",
            r"picture list .* names 2 pictures, of which 1 are missing in .*: train/7\.png$",
        ),
    ],
)
def test_faults_of_lists(write_list, text, match):
    with pytest.raises(ValueError, match=match):
        resolve_dataset(write_list(text))


def test_a_list_needs_a_place():
    with pytest.raises(ValueError, match=r"data set name 'list:' must say where the data are: list:FILE"):
        resolve_dataset("list:")
