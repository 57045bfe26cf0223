from __future__ import annotations

import pickle

import pytest

from s2uniseg_d2.data.packed import JoinedRecords, PackedTexts, PicturePaths, PictureRecords

TEXTS = ["n01440764/n01440764_18.JPEG", "", "ü/日本.jpg", "bytes \udcff.png"]


def test_packed_texts_come_back():
    packed = PackedTexts.pack(iter(TEXTS))
    assert list(packed) == TEXTS
    assert (len(packed), packed[-1], packed[1:3]) == (4, TEXTS[-1], TEXTS[1:3])
    assert list(pickle.loads(pickle.dumps(packed))) == TEXTS
    assert (
        packed.letters.nbytes + packed.ends.nbytes == sum(len(t.encode("utf-8", "surrogateescape")) for t in TEXTS) + 32
    )
    for index in (4, -5):
        with pytest.raises(IndexError):
            packed[index]
    assert list(PackedTexts.pack([])) == []


def test_paths_are_joined_and_tidied():
    paths = PicturePaths("/data/train", PackedTexts.pack(["a/1.jpg", "./2.jpg", "../3.jpg", "/elsewhere/4.jpg"]))
    assert list(paths) == ["/data/train/a/1.jpg", "/data/train/2.jpg", "/data/3.jpg", "/elsewhere/4.jpg"]


def test_joined_records_follow_each_other():
    one, two = (PictureRecords(PicturePaths("/", PackedTexts.pack(names))) for names in (["a", "b"], ["c"]))
    joined = JoinedRecords([one, [], two, [{"file_name": "d"}]])
    assert [record["file_name"] for record in joined] == ["/a", "/b", "/c", "d"]
    assert [record.get("image_id") for record in joined] == [0, 1, 0, None]
    assert joined[-2] == {"file_name": "/c", "image_id": 0}
    with pytest.raises(IndexError):
        joined[4]
