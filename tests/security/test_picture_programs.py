"""No picture starts a program."""

import os

import pytest

from s2uniseg_d2.data.pictures import UnreadablePictureError, read_picture

PAGE = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch x) (w) file\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["page.eps", "page.jpg"])
def test_a_page_description_is_no_picture(tmp_path, monkeypatch, name):
    # Pillow knows one by its content, whatever its name, and hands it to Ghostscript; this one would say so
    target = tmp_path / "touched"
    for program in ("gs", "gswin64c", "gswin32c"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {target}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / name).write_bytes(PAGE)
    with pytest.raises(UnreadablePictureError, match="cannot read picture"):
        read_picture(tmp_path / name)
    assert not target.exists()
