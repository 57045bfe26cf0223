from __future__ import annotations

from s2uniseg_d2.data.picture_check import PictureCheck, draw_sample, find_copies, read_pictures
from tests.tiny import write_pictures


def test_pictures_are_read_whole_and_damage_is_named(tmp_path):
    folder = write_pictures(tmp_path, count=3, size=(96, 64))
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    records = [{"file_name": str(folder / f"{i}.png")} for i in range(3)]
    found = read_pictures(records, [0, 1, 2])
    assert found.sizes == {0: (96, 64), 2: (96, 64)}
    assert list(found.unreadable) == [1]
    assert found.summary().startswith("2 of 3 looked at are readable; all 64 x 96 pixels; cannot read picture")


def test_sizes_are_summed_up_from_smallest_to_largest():
    found = PictureCheck({0: (20, 30), 1: (5, 5), 2: (10, 12)}, {})
    assert found.summary() == "3 of 3 looked at are readable; 5 x 5 to 30 x 20 pixels, middle 12 x 10"


def test_of_many_reasons_the_first_are_named():
    found = PictureCheck({}, {place: f"reason {place}" for place in range(5)})
    assert found.summary() == "0 of 5 looked at are readable; reason 0; reason 1; reason 2; and 2 more"


def test_a_sample_is_ordered_seeded_and_without_repeats():
    assert draw_sample(3, 5, seed=0) == [0, 1, 2]
    sample = draw_sample(1000, 64, seed=0)
    assert sample == sorted(set(sample)) == draw_sample(1000, 64, seed=0)
    assert len(sample) == 64
    assert sample != draw_sample(1000, 64, seed=1)


def test_copies_are_files_of_equal_bytes(tmp_path):
    contents = [b"aaa", b"bbb", b"aaa", b"cc", b"aaa", b"bbb"]
    for place, content in enumerate(contents):
        (tmp_path / str(place)).write_bytes(content)
    assert find_copies([str(tmp_path / str(place)) for place in range(6)]) == {2: 0, 4: 0, 5: 1}
