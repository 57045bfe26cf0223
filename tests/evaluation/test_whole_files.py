from __future__ import annotations

import os

import pytest

from s2uniseg_d2.evaluation.whole_files import remove_partials, replacing, write_json


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", [object()])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "[1]"


def test_what_a_kill_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    child = os.fork()
    if not child:
        with replacing(tmp_path / "folder" / "killed.json") as partial:
            partial.write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    (tmp_path / ".model_0000001.pth.partial").touch()  # another's
    assert len(list((tmp_path / "folder").iterdir())) == 1
    with replacing(tmp_path / "living.json") as partial:
        partial.write_text("whole")
        remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".model_0000001.pth.partial", "folder", "living.json"]
