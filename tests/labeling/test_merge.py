from __future__ import annotations

import shutil

import pytest

from s2uniseg_d2.labeling.merge import merge_shards
from s2uniseg_d2.labeling.records import Selection
from tests.labeling.test_run import files, run
from tests.tiny import write_pictures

SHARDS = 3


@pytest.fixture(scope="module")
def made(maker, tmp_path_factory):
    """Outputs of three shards and of the whole, with a bad picture among them."""
    folder = tmp_path_factory.mktemp("merge")
    pictures = write_pictures(folder / "pictures", count=6, size=(48, 64))
    (pictures / "3bad.png").touch()
    for part in range(1, SHARDS + 1):
        run(maker, pictures, folder / f"part{part}" / "labels.json", shard=(part, SHARDS))
    run(maker, pictures, folder / "whole" / "labels.json")
    run(maker, pictures, folder / "other" / "labels.json", shard=(1, SHARDS), selection=Selection(max_masks=3))
    return folder


def shards(made, *parts):
    return [made / part / "labels.json" for part in parts]


def test_merged_shards_are_the_whole_byte_for_byte(made, tmp_path):
    outcome = merge_shards(shards(made, "part2", "part3", "part1"), tmp_path / "labels.json")
    assert files(tmp_path / "labels.json") == files(made / "whole" / "labels.json")
    assert outcome.tally[:2] == (6, 1)


def test_one_shard_of_one_merges_to_itself(made, tmp_path):
    merge_shards(shards(made, "whole"), tmp_path / "labels.json")
    assert files(tmp_path / "labels.json") == files(made / "whole" / "labels.json")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("part1", "part2"), "of 3 these are missing: 3/3"),
        (("part3",), "missing: 1/3, 2/3"),
        (("part1", "part2", "part1"), "are both 1/3"),
        (("other", "part2", "part3"), "differ in max_masks: 0 and 3"),
        (("part1", "whole"), "differ in shard"),
        (("part1", "nowhere"), "cannot be read"),
        (("pictures",), "cannot be read"),
        ((), "at least one file"),
    ],
)
def test_shards_that_make_no_whole_are_refused(made, tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        merge_shards(shards(made, *parts), tmp_path / "labels.json")
    assert not (tmp_path / "labels.json").exists()


def test_a_part_of_a_file_is_refused_and_the_old_output_stays(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    torn = tmp_path / "copy" / "part2" / "labels.json"
    torn.write_bytes(torn.read_bytes()[:-40])
    output = tmp_path / "labels.json"
    output.write_text("old")
    paths = shards(tmp_path / "copy", "part1", "part2", "part3")
    with pytest.raises(ValueError, match=r"part2.labels\.json is no file .* or a part of one"):
        merge_shards(paths, output, overwrite=True)
    assert output.read_text() == "old"


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_embeddings_must_be_there(made, tmp_path, damage):
    shutil.copytree(made, tmp_path / "copy")
    side = tmp_path / "copy" / "part2" / "labels.embeddings.npy"
    side.unlink() if damage == "gone" else shutil.copy(made / "part3" / "labels.embeddings.npy", side)
    with pytest.raises(ValueError, match=r"embeddings .*part2.labels\.embeddings\.npy"):
        merge_shards(shards(tmp_path / "copy", "part1", "part2", "part3"), tmp_path / "labels.json")


def test_an_output_in_the_way_is_refused(made, tmp_path):
    output = tmp_path / "labels.json"
    output.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        merge_shards(shards(made, "whole"), output)
    with pytest.raises(ValueError, match="must not be one of the shards"):
        merge_shards(shards(made, "whole"), made / "whole" / "labels.json", overwrite=True)
    with pytest.raises(ValueError, match=r"ends in \.json"):
        merge_shards(shards(made, "whole"), tmp_path / "labels")
