from __future__ import annotations

import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from s2uniseg_d2.data import resolve_dataset

SYNSETS = {"n01440764": 3, "n01443537": 2}


@pytest.fixture(autouse=True)
def _clean_catalogs():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def imagenet(root, files):
    for synset, count in SYNSETS.items():
        for number in range(count):
            # ImageNet's names, and a JPEG whatever the letters
            path = files.photo(root / f"imagenet/train/{synset}/{synset}_{number + 18}.jpeg", 8, 9)
            path.rename(path.with_suffix(".JPEG"))
    return root / "imagenet/train"


@pytest.fixture
def sa1b(root, files):
    """Twelve pictures in two archives' folders, each with its JSON."""
    for number in range(1, 13):
        name = f"sa_00000{number // 8}/sa_{number}"
        files.photo(root / f"sa1b/images/{name}.jpg", 6, 7, number)
        image = {"image_id": number, "width": 7, "height": 6, "file_name": f"sa_{number}.jpg"}
        files.truth(root / f"sa1b/images/{name}.json", {"image": image, "annotations": []})
    return root / "sa1b/images"


def listed(path):
    return [os.path.basename(record["file_name"]) for record in DatasetCatalog.get(resolve_dataset(f"list:{path}"))]


def test_imagenet_list_is_the_folder_s_pictures(run, imagenet, root, files):
    status, said, errors = run("prepare_imagenet")
    assert (status, errors) == (0, "")
    assert "5 training pictures of ILSVRC2012 in 2 classes, written to" in said
    records = DatasetCatalog.get(resolve_dataset(f"list:{root}/imagenet/train.txt"))
    assert records == DatasetCatalog.get(resolve_dataset(f"folder:{imagenet}"))
    lines = (root / "imagenet/train.txt").read_text().splitlines()
    assert lines[:2] == ["# 5 training pictures of ILSVRC2012 in 2 classes", "train/n01440764/n01440764_18.JPEG"]
    before = files.snapshot(root)
    assert "already in" in run("prepare_imagenet")[1]
    assert files.snapshot(root) == before


def test_imagenet_elsewhere_is_listed_with_whole_paths(run, imagenet, root, tmp_path):
    elsewhere = tmp_path / "disk/train"
    elsewhere.parent.mkdir()
    imagenet.rename(elsewhere)
    assert run("prepare_imagenet", "--folder", elsewhere)[0] == 0
    assert (root / "imagenet/train.txt").read_text().splitlines()[1].startswith(str(elsewhere))
    assert len(listed(root / "imagenet/train.txt")) == 5


def test_faults_of_imagenet(run, imagenet, root, files):
    assert (
        "expected the 1000 classes of ILSVRC2012 that are published, got 2" in run("prepare_imagenet", partial=False)[2]
    )
    files.photo(imagenet / "val_18.png", 5, 5)
    assert "got 1 others, such as val_18.png" in run("prepare_imagenet")[2]
    (imagenet / "val_18.png").unlink()
    (imagenet / "n01440764/n01440764_18.JPEG").write_bytes(b"")
    assert "n01440764_18.JPEG cannot be read as a picture" in run("prepare_imagenet")[2]
    assert not (root / "imagenet/train.txt").exists()
    assert run("prepare_imagenet", "--folder", root / "no")[2].count("image-net.org/challenges") == 1


def test_sa1b_first_pictures_are_in_the_order_of_their_numbers(run, sa1b, root):
    status, said, _ = run("prepare_sa1b", "--count", 10, partial=False)
    assert (status, "10 of 12 pictures of SA-1B, those with the lowest numbers (sa_1 to sa_10)" in said) == (0, True)
    assert listed(root / "sa1b/sa1b_10.txt") == [f"sa_{number}.jpg" for number in range(1, 11)]


def test_sa1b_random_subsets_are_reproducible_and_nested(run, sa1b, root, load_tool):
    for count, seed in ((4, 3), (8, 3), (8, 4)):
        assert run("prepare_sa1b", "--count", count, "--choice", "random", "--seed", seed)[0] == 0
    small, large, other = (listed(root / f"sa1b/sa1b_{name}.txt") for name in ("4_random3", "8_random3", "8_random4"))
    assert (len(small), len(large)) == (4, 8)
    assert set(small) < set(large)
    assert large != other
    choose = load_tool("prepare_sa1b").choose
    assert choose(list(range(1, 13)), 8, "random", 3) == [int(name[3:-4]) for name in large]


def test_sa1b_subsets_of_the_paper_ask_for_enough_pictures(run, sa1b, root):
    status, _, errors = run("prepare_sa1b", partial=False)
    assert (status, errors.count("\n")) == (1, 3)
    assert "holds 12 pictures, 400000 are needed: more archives are at https://ai.meta.com" in errors
    assert run("prepare_sa1b", "1.2M")[0] == 0
    assert len(listed(root / "sa1b/sa1b_1.2M.txt")) == 12


def test_faults_of_sa1b(run, sa1b, root, files):
    files.truth(sa1b / "sa_000000/sa_1.json", {"image": {"file_name": "sa_1.jpg", "height": 7, "width": 6}})
    assert "must describe sa_1.jpg of height and width (6, 7), got sa_1.jpg of (7, 6)" in run("prepare_sa1b", "2M")[2]
    files.photo(sa1b / "sa_000001/sa_1.jpg", 6, 7)
    assert "holds sa_1.jpg twice" in run("prepare_sa1b", "2M")[2]
    files.photo(sa1b / "holiday.jpg", 6, 7)
    assert "must hold pictures named as sa_1.jpg, got" in run("prepare_sa1b", "2M")[2]


@pytest.mark.parametrize("arguments", [["3M"], ["--count", "0"], ["2M", "--count", "5"], ["--seed", "-1"]])
def test_arguments_that_make_no_sense(run, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run("prepare_sa1b", *arguments)
    assert stop.value.code == 2
