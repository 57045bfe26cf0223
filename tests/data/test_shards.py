from __future__ import annotations

import io
import itertools
import logging
import os
import tarfile

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from s2uniseg_d2.config import load_config
from s2uniseg_d2.data import InferenceMapper, build_train_loader, resolve_dataset, shards

# Python 3.12 and later warn where torch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def png(seed):
    data = io.BytesIO()
    Image.fromarray(picture(seed)).save(data, "PNG")
    return data.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def two_shards(tmp_path):
    """Five pictures in two shards, with what WebDataset puts beside them."""
    long_name = "deep/" * 30 + "2.png"
    write_tar(tmp_path / "x-00.tar", {"0.png": png(0), "0.json": b"{}", "1.PNG": png(1), "._1.png": b"fork"})
    write_tar(tmp_path / "x-01.tar", {long_name: png(2), "3.png": png(3), "4.png": png(4)})
    return f"tar:{tmp_path}/x-{{00..01}}.tar"


def test_pictures_come_out_of_shards_as_they_went_in(two_shards, tmp_path):
    name = resolve_dataset(two_shards)
    records = DatasetCatalog.get(name)
    assert [os.path.basename(record["file_name"]) for record in records] == [
        "0.png",
        "1.PNG",
        "2.png",
        "3.png",
        "4.png",
    ]
    assert records[3]["file_name"] == f"{tmp_path}/x-01.tar/3.png"
    assert [record["image_id"] for record in records] == list(range(5))
    assert MetadataCatalog.get(name).evaluator_type == "none"
    for seed, record in enumerate(records):
        image = InferenceMapper(longest_px=50)(record)["image"]
        np.testing.assert_array_equal(image.permute(1, 2, 0), picture(seed))


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_shards_equals_training_on_the_files(two_shards, tmp_path, workers):
    (tmp_path / "files").mkdir()
    for seed, name in enumerate(("0.png", "1.PNG", "2.png", "3.png", "4.png")):
        (tmp_path / "files" / name).write_bytes(png(seed))
    cfg = load_config("", [])
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = workers, 2
    cfg.INPUT.GLOBAL_LONGEST_PX = cfg.INPUT.VIEWS.SIZE_PX = 32
    seen = []
    for source, start in ((two_shards, 0), (f"folder:{tmp_path}/files", 0), (two_shards, 2)):
        cfg.DATASETS.TRAIN = (source,)
        batches = itertools.islice(build_train_loader(cfg, start_iter=start), 4 - start)
        seen.append([(item["image_id"], item["views"].sum().item()) for batch in batches for item in batch])
    assert seen[0] == seen[1]
    # a run that goes on sees what it would have seen
    assert seen[2] == seen[0][4:]


def test_the_index_is_kept_and_follows_its_shard(two_shards, tmp_path, monkeypatch):
    shard = str(tmp_path / "x-00.tar")
    first = shards.index_shard(shard)
    assert (tmp_path / ".x-00.tar.index.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *args: pytest.fail("the shard was read again"))
        again = shards.index_shard(shard)
    assert list(again.names) == list(first.names) == ["0.png", "1.PNG"]
    assert np.array_equal(again.offsets, first.offsets)
    write_tar(shard, {"new.png": png(7)})
    assert list(shards.index_shard(shard).names) == ["new.png"]


def test_an_index_that_is_damaged_or_cannot_be_kept_is_no_error(two_shards, tmp_path, monkeypatch, caplog):
    shard = str(tmp_path / "x-00.tar")
    (tmp_path / ".x-00.tar.index.npz").write_bytes(b"no index")
    with caplog.at_level(logging.WARNING):
        assert len(shards.index_shard(shard).names) == 2
    assert "cannot be read" in caplog.text
    (tmp_path / ".x-00.tar.index.npz").unlink()

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with caplog.at_level(logging.WARNING):
        assert len(shards.index_shard(shard).names) == 2
    assert "cannot be kept (Permission denied): the shard is read at every start" in caplog.text
    assert not [path for path in tmp_path.iterdir() if "index" in path.name]


def test_patterns(two_shards, tmp_path):
    both = [str(tmp_path / "x-00.tar"), str(tmp_path / "x-01.tar")]
    assert shards.find_shards(f"{tmp_path}/x-*.tar") == both
    assert shards.find_shards(f"{tmp_path}/x-{{00..01}}.tar") == both
    assert shards.find_shards(f"{tmp_path}/x-0{{1..1}}.tar") == both[1:]
    assert shards.find_shards(both[0]) == both[:1]


def test_faults_are_named(two_shards, tmp_path):
    with pytest.raises(ValueError, match=r"tar shard .*x-02\.tar does not exist"):
        resolve_dataset(f"tar:{tmp_path}/x-{{00..02}}.tar")
    with pytest.raises(ValueError, match=r"no tar shard matches .*y-\*\.tar"):
        resolve_dataset(f"tar:{tmp_path}/y-*.tar")
    with pytest.raises(ValueError, match=r"data set name 'tar:' must say where the data are: tar:PATTERN"):
        resolve_dataset("tar:")
    packed = write_tar(tmp_path / "packed.tar.gz", {"0.png": png(0)}, "w:gz")
    with pytest.raises(ValueError, match=r"tar shard .*packed\.tar\.gz must be a sound, uncompressed tar file"):
        resolve_dataset(f"tar:{packed}")
    bare = write_tar(tmp_path / "bare.tar", {"0.txt": b"text"})
    with pytest.raises(ValueError, match=r"1 tar shards hold no picture, such as .*bare\.tar"):
        resolve_dataset(f"tar:{bare}")
    whole = (tmp_path / "x-01.tar").read_bytes()
    for end in (len(whole) // 2, len(png(2)) // 2, 700):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"tar shard .*cut\.tar must be a sound, uncompressed tar file"):
            resolve_dataset(f"tar:{tmp_path}/cut.tar")
