"""Names that come out of files stay in the folder that they count from."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.data.coco_json import check_coco_json, check_files
from s2uniseg_d2.data.datasets import load_train_records
from s2uniseg_d2.data.panoptic_json import load_panoptic, panoptic_classes
from s2uniseg_d2.data.picture_folder import list_pictures, read_picture_list
from s2uniseg_d2.labeling.sources import find_pictures

OUTSIDE = ["{secret}", "../secret.png", "a/../../secret.png", "link.png", "linked/secret.png", "a/up/secret.png"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture and links out of it, beside a secret."""
    inside = tmp_path / "pictures"
    (inside / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(inside / "1.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "linked").symlink_to(tmp_path)
    (inside / "a" / "up").symlink_to("../..")
    (inside / "own.png").symlink_to("1.png")
    return inside


def coco(name):
    image = {"id": 1, "file_name": name, "height": 4, "width": 4}
    return {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x", "isthing": 1}]}


@pytest.mark.parametrize("name", OUTSIDE)
def test_coco_files_name_no_picture_outside(folder, name):
    name = name.format(secret=folder.parent / "secret.png")
    (folder.parent / "t.json").write_text(json.dumps(coco(name)))
    with pytest.raises(ValueError, match=r"annotation file .*t\.json must name files inside their folder"):
        check_coco_json(folder.parent / "t.json", folder)
    with pytest.raises(ValueError, match="must name files inside their folder"):
        resolve_dataset(f"coco:{folder.parent}/t.json:{folder}")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("of_map", [False, True])
def test_panoptic_files_name_no_picture_outside(folder, name, of_map):
    name = name.format(secret=folder.parent / "secret.png")
    content = coco("1.png" if of_map else name)
    content["annotations"] = [{"image_id": 1, "file_name": name if of_map else "1.png", "segments_info": []}]
    (folder.parent / "p.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must name files inside their folder"):
        load_panoptic(folder.parent / "p.json", folder, folder, panoptic_classes(content["categories"]))


@pytest.mark.parametrize("name", OUTSIDE[1:])
def test_lists_lead_nowhere_else_unless_they_say_so(folder, name):
    path = folder / "list.txt"
    path.write_text(f"1.png\n{name}\n")
    with pytest.raises(ValueError, match=r"picture list .*list\.txt must name pictures in its folder.*whole path"):
        read_picture_list(path)
    for name_of in (lambda: resolve_dataset(f"list:{path}"), lambda: find_pictures([path])):
        with pytest.raises(ValueError, match="must name pictures in its folder"):
            name_of()
    path.write_text(f"1.png\n{folder.parent / 'secret.png'}\n")
    assert list(read_picture_list(path))[1] == str(folder.parent / "secret.png")


def test_links_inside_and_the_users_own_are_followed(folder, tmp_path):
    (tmp_path / "root").symlink_to(folder)
    for root in (folder, tmp_path / "root"):
        check_files(tmp_path / "t.json", "images", ["1.png", "own.png"], root)
    (folder / "list.txt").write_text("1.png\nown.png\na/../1.png\n")
    assert len(read_picture_list(folder / "list.txt")) == 3
    # a folder that is named by the user is looked through with its links, whatever they lead to
    assert any("link.png" in path for path in list_pictures(folder))


def test_archives_give_what_lies_in_them_alone(folder, tmp_path):
    picture = (folder / "1.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.png", "../climbs.png", "/absolute.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
        for kind, target in ((tarfile.SYMTYPE, "../secret.png"), (tarfile.LNKTYPE, str(tmp_path / "secret.png"))):
            member = tarfile.TarInfo(f"link{kind.decode()}.png")
            member.type, member.linkname = kind, target
            tar.addfile(member)
        for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"other{kind.decode()}.png")
            member.type = kind
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    name = resolve_dataset(f"tar:{tmp_path}/a.tar")
    records = load_train_records([name], needs_annotations=False)
    # names are no paths here: bytes are read where they lie in the archive, and links have none
    assert [record["file_name"].removeprefix(f"{tmp_path}/a.tar/") for record in records] == [
        "1.png", "../climbs.png", "/absolute.png",
    ]  # fmt: skip
    assert all(record["span"].file == str(tmp_path / "a.tar") for record in records)
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / ".a.tar.index.npz"]


@pytest.mark.parametrize("name", ["", 3, None, "a\0b.png", ["x"]])
def test_names_that_are_none_are_refused(folder, name):
    with pytest.raises(ValueError, match="must name files inside their folder, got"):
        check_files(folder / "t.json", "images", [name], folder)
