from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from s2uniseg_d2.evaluation.png_maps import check_names, read_ids, read_labels, write_ids, write_labels


def test_ids_are_panopticapis(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536 + 2, (1 << 24) - 1]])
    write_ids(tmp_path / "deep" / "a.png", ids)
    colours = np.asarray(Image.open(tmp_path / "deep" / "a.png")).astype(int)
    assert colours[1, 1].tolist() == [2, 0, 1]
    np.testing.assert_array_equal(colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2], ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "deep" / "a.png"), ids)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


@pytest.mark.parametrize("wrong", [-1, 1 << 24])
def test_bad_ids(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"segment ids must lie in \[0, 2\^24\) to be written"):
        write_ids(tmp_path / "a.png", np.array([[wrong]]))
    assert not list(tmp_path.iterdir())


def test_a_missing_map(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the panoptic map .*a.png: No such file or directory"):
        read_ids(tmp_path / "a.png")


def test_labels_keep_none(tmp_path):
    labels = np.array([[-1, 0, 255], [256, 65534, 7]])
    write_labels(tmp_path / "a.png", labels, 65535)
    assert np.asarray(Image.open(tmp_path / "a.png"))[0].tolist() == [65535, 0, 255]
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", 65535), labels)


def test_names_must_differ():
    assert check_names(["a/b.jpg", "a/c.d.jpg"]) == {"a/b.jpg": "b.png", "a/c.d.jpg": "c.d.png"}
    with pytest.raises(ValueError, match=r"names of their own to be written as PNG, got a/x\.jpg and another"):
        check_names(["a/x.jpg", "b/x.png"])
