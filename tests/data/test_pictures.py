from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from s2uniseg_d2.data import UnreadablePictureError, read_picture
from s2uniseg_d2.data.pictures import StoredPicture


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tif", "a.tga"])
def test_lossless_formats_come_back_as_they_were(tmp_path, rgb, name):
    Image.fromarray(rgb).save(tmp_path / name)
    picture = read_picture(tmp_path / name)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable
    np.testing.assert_array_equal(picture, rgb)


def test_a_format_that_only_opencv_knows(tmp_path, rgb):
    path = tmp_path / "a.hdr"
    assert cv2.imwrite(str(path), rgb[:, :, ::-1].astype(np.float32) / 255)
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(path)
    assert np.abs(read_picture(path).astype(int) - rgb).max() <= 3  # HDR shares an exponent


def test_grey_and_palette_and_binary(tmp_path, rgb):
    grey = rgb[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png"), np.array(palette.convert("RGB")))
    Image.fromarray(grey > 128).save(tmp_path / "binary.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "binary.png")[:, :, 1], (grey > 128) * np.uint8(255))


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red = read_picture(tmp_path / "a.jpg")
    assert red.shape == (8, 8, 3)
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    samples = np.array([[0, 257, 128 * 257], [65535, 300, 65000]], dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / name), samples)
    np.testing.assert_array_equal(read_picture(tmp_path / name)[:, :, 2], [[0, 1, 128], [255, 1, 253]])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_colour_is_scaled(tmp_path, rgb, name):
    assert cv2.imwrite(str(tmp_path / name), rgb[:, :, ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(tmp_path / name), rgb)


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_floating_point_grey(tmp_path, peak):
    samples = np.array([[0, 0.5 * peak], [peak, np.nan]], dtype=np.float32)
    Image.fromarray(samples).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif")[:, :, 0], [[0, 128], [255, 0]])


def test_transparency_shows_white(tmp_path):
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 200, (0, 255, 51)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    np.testing.assert_allclose(read_picture(tmp_path / "a.png")[0], expected, atol=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png", transparency=1)
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png")[0], [[10, 20, 30], [255, 255, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, rgb, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture, np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))))
    assert picture.shape[:2] == ((6, 9) if orientation < 5 else (9, 6))


def test_damaged_exif_does_not_matter(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00garbage that is no TIFF header", quality=100)
    assert read_picture(tmp_path / "a.jpg").shape == rgb.shape


def test_one_pixel_is_a_picture(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), [[[1, 2, 3]]])


def test_missing_and_empty_files_and_text_are_named_with_the_reason(tmp_path):
    with pytest.raises(UnreadablePictureError, match=r"cannot read picture .*no\.jpg: No such file"):
        read_picture(tmp_path / "no.jpg")
    (tmp_path / "zero.jpg").touch()
    with pytest.raises(ValueError, match=r"zero\.jpg: the file is empty \(0 bytes\)"):
        read_picture(tmp_path / "zero.jpg")
    (tmp_path / "text.png").write_text("not a picture at all")
    with pytest.raises(UnreadablePictureError, match=r"text\.png: neither Pillow nor OpenCV knows its format"):
        read_picture(tmp_path / "text.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_truncated_files_are_refused(write_noise, suffix, share):
    path = write_noise(f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(share * len(data)))])
    with pytest.raises(UnreadablePictureError, match=rf"cannot read picture .*a\.{suffix}: \w+"):
        read_picture(path)


@pytest.mark.parametrize("side", [11, 30])  # Pillow warns above its limit, and refuses above twice that
def test_decompression_bombs_are_refused(write_noise, monkeypatch, side):
    path = write_noise("bomb.png", side, side)
    assert read_picture(path).shape == (side, side, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadablePictureError, match=r"bomb\.png: it has more than 100 pixels"):
        read_picture(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_a_reduced_jpeg_stands_upright_and_averages_blocks(tmp_path, orientation, reduction):
    # sides that are no multiples of the reduction
    ramp = np.stack(np.meshgrid(np.linspace(0, 255, 203), np.linspace(0, 255, 151)), axis=2)
    rgb = np.concatenate([ramp, 255 - ramp[:, :, :1]], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    stored = StoredPicture(tmp_path / "a.jpg")
    whole = read_picture(tmp_path / "a.jpg")
    assert (stored.height, stored.width) == whole.shape[:2] == ((151, 203) if orientation < 5 else (203, 151))
    reduced = stored.read(reduction)
    assert reduced.shape[:2] == (-(-stored.height // reduction), -(-stored.width // reduction))
    # compare in the stored orientation, where blocks begin at the first pixel
    turn = {1: 0, 2: "flip", 3: 2, 4: "flop", 5: "transpose", 6: 1, 7: "transverse", 8: 3}[orientation]

    def stored_again(picture):
        if turn == "flip":
            return picture[:, ::-1]
        if turn == "flop":
            return picture[::-1]
        if turn == "transpose":
            return picture.transpose(1, 0, 2)
        if turn == "transverse":
            return picture[::-1, ::-1].transpose(1, 0, 2)
        return np.rot90(picture, turn)

    rows, columns = 151 // reduction, 203 // reduction
    blocks = stored_again(whole)[: rows * reduction, : columns * reduction].astype(float)
    means = blocks.reshape(rows, reduction, columns, reduction, 3).mean(axis=(1, 3))
    assert np.abs(stored_again(reduced)[:rows, :columns] - means).max() < 4


def test_only_jpegs_are_reduced_and_sizes_need_no_pixels(tmp_path, rgb, write_noise):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert StoredPicture(tmp_path / "a.png").reductions == (1,)
    with pytest.raises(ValueError, match=r"reduction must be one of \(1,\) for .*a\.png, got 2"):
        StoredPicture(tmp_path / "a.png").read(2)
    path = write_noise("b.jpg", 100, 90)
    path.write_bytes(path.read_bytes()[:-1500])
    stored = StoredPicture(path)
    assert (stored.height, stored.width, stored.reductions) == (100, 90, (8, 4, 2, 1))
    with pytest.raises(UnreadablePictureError, match=r"cannot read picture .*b\.jpg: .*truncated"):
        stored.read(2)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_reduced_too(tmp_path, mode):
    Image.new("RGB", (64, 48), (200, 60, 20)).convert(mode).save(tmp_path / "a.jpg", quality=100)
    reduced = StoredPicture(tmp_path / "a.jpg").read(4)
    assert reduced.shape == (12, 16, 3)
    assert np.abs(reduced.astype(int) - read_picture(tmp_path / "a.jpg")[::4, ::4]).max() <= 2
