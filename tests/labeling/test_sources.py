from __future__ import annotations

import os

import pytest

from s2uniseg_d2.labeling.sources import find_pictures


@pytest.fixture
def tree(tmp_path):
    for name in ("a/1.jpg", "a/2.PNG", "a/deep/1.jpg", "b/1.jpg", "b/notes.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_gives_its_pictures_below_it(tree):
    found = find_pictures([tree / "a"])
    assert found.root == str(tree / "a")
    assert found.names == ["1.jpg", "2.PNG", "deep/1.jpg"]
    assert found.path(2) == str(tree / "a" / "deep" / "1.jpg")


def test_equal_names_in_different_folders_stay_apart(tree):
    found = find_pictures([tree / "b", tree / "a" / "deep"])
    assert found.root == str(tree)
    assert found.names == ["b/1.jpg", "a/deep/1.jpg"]


def test_inputs_keep_their_order_and_count_once(tree):
    found = find_pictures([tree / "b" / "1.jpg", tree, str(tree / "*" / "1.jpg")])
    assert found.names == ["b/1.jpg", "a/1.jpg", "a/2.PNG", "a/deep/1.jpg"]
    assert found.repeated == 3


def test_a_glob_gives_pictures_only(tree):
    assert find_pictures([str(tree / "b" / "*")]).names == ["1.jpg"]
    assert find_pictures([str(tree / "**" / "1.jpg")]).names == ["a/1.jpg", "a/deep/1.jpg", "b/1.jpg"]


def test_a_list_file_counts_from_its_own_folder(tree, monkeypatch):
    (tree / "list.txt").write_text(f"b/1.jpg\n\n  a/1.jpg \n{tree}/a/2.PNG\n")
    monkeypatch.chdir(tree.parent)
    assert find_pictures([f"{tree.name}/list.txt"]).names == ["b/1.jpg", "a/1.jpg", "a/2.PNG"]


def test_a_file_is_taken_whatever_its_suffix(tree):
    assert find_pictures([tree / "b" / "notes.md"]).names == ["notes.md"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    (tree / "x[1].jpg").touch()
    assert find_pictures([tree / "x[1].jpg"]).names == ["x[1].jpg"]


def test_the_digest_knows_names_and_order_but_not_the_root(tree):
    first = find_pictures([tree / "a"])
    os.rename(tree / "a", tree / "moved")
    assert find_pictures([tree / "moved"]).digest() == first.digest()
    assert first._replace(names=first.names[::-1]).digest() != first.digest()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("nowhere", "'.*nowhere' does not exist"),
        ("*.tiff", "matches no picture"),
        ("b/*.md", r"matches no picture \(1 other"),
        ("empty", "holds no picture"),
        ("empty.txt", "names no picture"),
        ("gone.txt", "1 are missing"),
    ],
)
def test_an_input_that_names_nothing_is_refused(tree, item, message):
    (tree / "empty").mkdir()
    (tree / "empty.txt").write_text("\n\n")
    (tree / "gone.txt").write_text("b/1.jpg\nb/2.jpg\n")
    with pytest.raises(ValueError, match=message):
        find_pictures([tree / "a", str(tree / item)])


def test_no_input_is_refused():
    with pytest.raises(ValueError, match="got none"):
        find_pictures([])
