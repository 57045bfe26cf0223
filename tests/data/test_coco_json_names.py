from __future__ import annotations

import pytest

from s2uniseg_d2.data.coco_json import check_files, check_inside


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.png", "a/../../secret.png"])
def test_names_that_lead_out_of_their_folder_are_refused(tmp_path, name):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    with pytest.raises(ValueError, match="must name files inside their folder, got"):
        check_files(tmp_path / "t.json", "images", [name], tmp_path / "pictures")


def test_names_inside_are_fine():
    check_inside("t.json", ["a.png", "b/c..d.png"])
