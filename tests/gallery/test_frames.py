from __future__ import annotations

import itertools
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.gallery import frames
from s2uniseg_d2.gallery.frames import Frames
from tests.camera import Camera, cut_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Seven grey frames, each brighter than the one before; the top left quarter is red."""
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(7):
        frame = np.full((48, 64, 3), 30 * number, dtype=np.uint8)
        frame[:24, :32] = (0, 0, 255)  # OpenCV's order
        writer.write(frame)
    writer.release()
    return path


def test_folders_globs_and_lists_give_pictures_once(pictures, tmp_path):
    (tmp_path / "list.txt").write_text(f"{pictures / 'b' / '0.png'}\n")
    frames = Frames([str(pictures / "a"), str(pictures / "*" / "0.png"), str(tmp_path / "list.txt")])
    assert (frames.total, frames.repeated) == (3, 2)
    found = list(frames)
    assert [frame.name for frame in found] == ["a/0.png", "a/1.png", "b/0.png"]
    for frame in found:
        assert (frame.picture == read_picture(pictures / frame.name)).all()


def test_what_cannot_be_read_comes_with_its_reason(pictures):
    bad = list(Frames([str(pictures)]))[-1]
    assert bad.name == "bad.png"
    assert bad.picture is None
    assert "cannot read picture" in bad.reason


def test_a_video_gives_its_frames_in_rgb(video):
    frames = Frames([str(video)])
    found = list(frames)
    assert frames.total == len(found) == 7
    assert [frame.name for frame in found][:2] == ["clip.avi/000000", "clip.avi/000001"]
    for number, frame in enumerate(found):
        assert frame.picture.shape == (48, 64, 3)
        assert abs(int(frame.picture[40, 50, 0]) - 30 * number) < 6
        red, green, blue = frame.picture[10, 10].astype(int)
        assert red > 200 > 60 > max(green, blue)


def test_every_thins_a_video(video):
    frames = Frames([str(video)], every=3)
    assert frames.total == 3
    assert [frame.name[-1] for frame in frames] == ["0", "3", "6"]


def test_pictures_come_before_videos(video, pictures):
    frames = Frames([str(video), str(pictures / "a")], every=7)
    assert [frame.name for frame in frames] == ["0.png", "1.png", "clip.avi/000000"]


def test_a_video_that_is_none_is_skipped(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    frames = Frames([str(tmp_path / "clip.mp4")])
    (only,) = list(frames)
    assert frames.total == 1
    assert only.picture is None
    assert "OpenCV finds no frame in it" in only.reason


def test_a_video_that_is_cut_off_says_so_after_its_frames(video, tmp_path):
    path = tmp_path / "cut.avi"
    cut_video(video, path, 5)
    *found, last = Frames([str(path)], every=2)
    assert [frame.name for frame in found] == [f"cut.avi/{number:06d}" for number in (0, 2, 4)]
    assert all(frame.picture is not None for frame in found)
    reason = f"video {path} ends early: 5 of the 7 frames that its header promises could be read"
    assert last == ("cut.avi", None, reason)
    cut_video(video, path, 6)  # headers that are estimates are off by one
    assert len(list(Frames([str(path)]))) == 6


def test_a_webcam_that_is_not_there_is_an_error_before_any_work(pictures, capfd):
    with pytest.raises(ValueError, match="input 'webcam:93' cannot be opened: no such camera"):
        Frames([str(pictures), "webcam:93"])
    assert capfd.readouterr().err == ""  # OpenCV's own words are kept back


def test_a_webcam_gives_pictures_without_end(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    frames = Frames(["webcam:5"], every=2)
    assert frames.total is None
    found = list(itertools.islice(frames, 2))
    assert [frame.name for frame in found] == ["webcam5/000000", "webcam5/000002"]
    assert found[0].picture[0, 0].tolist() == [3, 2, 1]


def test_a_frame_that_cannot_be_decoded_is_skipped(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "retrieve", lambda _: (False, None))
    only = next(iter(Frames(["webcam:5"])))
    assert only.picture is None
    assert only.reason == "cannot read frame webcam5/000000: OpenCV does not decode it"


def test_videos_of_one_name_keep_apart(video, tmp_path):
    names = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        names.append(str(shutil.copy(video, tmp_path / folder)))
    assert [frame.name for frame in Frames(names, every=7)] == ["a/clip.avi/000000", "b/clip.avi/000000"]


def test_a_video_may_lie_in_the_home_folder(video, monkeypatch):
    monkeypatch.setenv("HOME", str(video.parent))
    assert next(iter(Frames(["~/clip.avi"]))).picture is not None


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ([], {}, "input must name pictures, a video or webcam:N, got nothing"),
        (["/nowhere"], {}, "input '/nowhere' does not exist"),
        (["/nowhere.mp4"], {}, "input '/nowhere.mp4' does not exist"),
        (["webcam:front"], {}, "must be webcam:N with N the number of a camera"),
        (["."], {"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(inputs, settings, message):
    with pytest.raises(ValueError, match=message):
        Frames(inputs, **settings)


def test_turned_pictures_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    (only,) = list(Frames([str(tmp_path)]))
    assert only.picture.shape == (20, 10, 3)


@pytest.mark.parametrize("nested", [False, True])
def test_opencv_is_silent_while_a_video_is_open_and_as_before_after_it(monkeypatch, nested):
    levels = []
    logging = SimpleNamespace(getLogLevel=lambda: 3, setLogLevel=levels.append)
    monkeypatch.setattr(cv2, "utils", SimpleNamespace(logging=logging) if nested else SimpleNamespace())
    for name, function in vars(logging).items() if not nested else ():
        monkeypatch.setattr(cv2, name, function, raising=False)
    with frames._open("no such video.mp4") as capture:
        assert not capture.isOpened()
        assert levels == [0]
    assert levels == [0, 3]
