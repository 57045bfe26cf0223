from __future__ import annotations

import numpy as np
import pytest

from s2uniseg_d2.data.picture_folder import read_picture_list
from s2uniseg_d2.labeling import picture_selection
from s2uniseg_d2.labeling.picture_selection import select_pictures, write_selection
from tests.tiny import write_pictures


def test_readable_pictures_count_once_and_can_be_listed(tmp_path):
    folder = write_pictures(tmp_path / "a b", count=12)
    other = write_pictures(tmp_path / "a b" / "below", count=1)  # a copy of the first
    (other / "broken.png").write_bytes(b"nothing")
    (folder / "odd\nname.png").write_bytes((folder / "3.png").read_bytes() + b"!")  # trailing bytes are no damage
    found = select_pictures([folder, folder])
    assert (found.found, len(found.paths), found.copies, found.unlistable) == (15, 12, 1, 1)
    write_selection(tmp_path / "run" / "pictures.txt", found)
    assert list(read_picture_list(tmp_path / "run" / "pictures.txt")) == found.paths
    assert "broken.png" in (tmp_path / "run" / "unreadable.txt").read_text()
    said = "\n".join(found.describe())
    assert "15 pictures found, 12 to learn from" in said
    assert "left out for line breaks, blank ends or no UTF-8 in their names: 1" in said


def test_too_few_are_refused_and_counted(tmp_path):
    folder = write_pictures(tmp_path, count=12)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"at least 10 .* got 9 in .*: 12 pictures found, 9 to learn from; 9 of 12"):
        select_pictures([folder])


def test_of_many_pictures_a_sample_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_selection, "READ_AT_MOST", 4)
    found = select_pictures([write_pictures(tmp_path, count=12)])
    assert len(found.check.sizes) == 4
    assert len(found.paths) == 12
    assert "4 drawn at random" in "\n".join(found.describe())


def test_enough_pictures_bring_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_selection, "ADVISED", 12)
    few = select_pictures([write_pictures(tmp_path, count=11)])
    assert "will know these by heart" in few.describe()[-1]
    enough = select_pictures([write_pictures(tmp_path, count=12)])
    assert "by heart" not in "\n".join(enough.describe())
    assert np.unique(list(enough.check.sizes.values()), axis=0).tolist() == [[96, 64]]
