from __future__ import annotations

import numpy as np
import pytest
import torch

from s2uniseg_d2.engine.drawing import (
    BACKDROP,
    TITLE_PX,
    caption,
    draw_boxes,
    draw_label_map,
    draw_masks,
    grid,
    palette,
    resize_to,
    upsample_labels,
    upsample_masks,
)


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rectangle(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_palette_is_stable_and_its_first_colours_lie_far_apart() -> None:
    colours = palette(range(24))
    assert np.array_equal(palette([7, 3]), colours[[7, 3]])
    assert np.array_equal(colours[0], (253, 115, 109))  # another palette would recolour all pictures drawn before
    assert len({tuple(colour) for colour in palette(range(500)).tolist()}) > 450
    distance = np.linalg.norm(colours[:, None].astype(float) - colours[None], axis=-1)
    assert distance[~np.eye(24, dtype=bool)].min() > 35
    first = distance[:8, :8][~np.eye(8, dtype=bool)]
    assert first.min() > 50


def test_palette_takes_huge_labels_and_none() -> None:
    assert palette([10**12]).shape == (1, 3)
    assert palette([]).shape == (0, 3)
    with pytest.raises(ValueError, match="labels must not be negative, got -2"):
        palette([1, -2])


def test_no_masks_give_a_copy() -> None:
    image = picture()
    drawn = draw_masks(image, np.zeros((0, 20, 30), dtype=bool))
    assert np.array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


def test_alpha_zero_without_outline_is_the_picture_and_alpha_one_the_colour() -> None:
    image, mask = picture(), rectangle(20, 30, 3, 4, 12, 20)
    kept = image.copy()
    assert np.array_equal(draw_masks(image, mask[None], alpha=0.0, outline=False), image)
    full = draw_masks(image, mask[None], alpha=1.0, outline=False, labels=[5])
    assert (full[mask] == palette([5])[0]).all()
    assert np.array_equal(full[~mask], image[~mask])
    assert np.array_equal(image, kept)


def test_small_masks_are_on_top_whatever_the_order() -> None:
    big, small = rectangle(20, 30, 0, 0, 20, 30), rectangle(20, 30, 5, 5, 9, 9)
    for masks, labels in (([big, small], [0, 1]), ([small, big], [1, 0])):
        drawn = draw_masks(picture(), np.stack(masks), labels=labels, alpha=1.0, outline=False)
        assert (drawn[small] == palette([1])[0]).all()
        assert (drawn[big & ~small] == palette([0])[0]).all()


def test_of_equal_masks_the_later_is_on_top() -> None:
    mask = rectangle(20, 30, 2, 2, 8, 8)
    drawn = draw_masks(picture(), np.stack([mask, mask]), alpha=1.0, outline=False)
    assert (drawn[mask] == palette([1])[0]).all()


def test_labels_choose_colours_and_the_order_does_without_them() -> None:
    masks = np.stack([rectangle(20, 30, 0, 0, 5, 5), rectangle(20, 30, 10, 10, 15, 15)])
    same = draw_masks(picture(), masks, labels=[4, 4], alpha=1.0, outline=False)
    assert np.array_equal(same[2, 2], same[12, 12])
    ordered = draw_masks(picture(), masks, alpha=1.0, outline=False)
    assert np.array_equal(ordered, draw_masks(picture(), masks, labels=[0, 1], alpha=1.0, outline=False))
    assert not np.array_equal(ordered[2, 2], ordered[12, 12])


def test_outlines_are_light_and_one_pixel_wide() -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    masks = np.stack([rectangle(20, 30, 4, 4, 16, 15), rectangle(20, 30, 4, 15, 16, 26)])
    plain = draw_masks(image, masks, outline=False)
    lined = draw_masks(image, masks)
    changed = (plain != lined).any(axis=-1)
    assert not changed[~masks.any(axis=0)].any()
    # across the middle row: the left rim, one line between the two masks, the right rim
    assert np.flatnonzero(changed[10]).tolist() == [4, 14, 25]
    assert lined[changed].astype(int).min(axis=-1).min() > 180


def test_tensors_draw_like_arrays() -> None:
    masks = np.stack([rectangle(20, 30, 0, 0, 5, 5), rectangle(20, 30, 3, 3, 15, 15)])
    assert np.array_equal(draw_masks(picture(), torch.from_numpy(masks)), draw_masks(picture(), masks))
    labels = masks[0].astype(np.int64) + masks[1]
    assert np.array_equal(draw_label_map(picture(), torch.from_numpy(labels)), draw_label_map(picture(), labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((4, 4, 3), dtype=np.float32)}, r"image must be uint8 of shape \(H, W, 3\), got float32"),
        ({"image": np.zeros((4, 4), dtype=np.uint8)}, r"image must be uint8 of shape \(H, W, 3\)"),
        ({"image": np.zeros((0, 4, 3), dtype=np.uint8)}, r"got uint8 of shape \(0, 4, 3\)"),
        ({"image": torch.zeros(4, 4, 3)}, "image must be a numpy array, got Tensor"),
        ({"masks": np.zeros((1, 4, 4))}, r"masks must be bool of shape \(n, H, W\), got float64"),
        ({"masks": np.zeros((4, 4), dtype=bool)}, r"got bool of shape \(4, 4\)"),
        ({"masks": np.zeros((1, 4, 5), dtype=bool)}, r"masks must have the image's size \(4, 4\), got \(4, 5\)"),
        ({"labels": [1, 2]}, r"labels must hold one number per mask \(1\), got 2"),
        ({"labels": [-1]}, "labels must not be negative, got -1"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
    ],
)
def test_draw_masks_refuses(arguments: dict, message: str) -> None:
    good = {"image": np.zeros((4, 4, 3), dtype=np.uint8), "masks": np.zeros((1, 4, 4), dtype=bool)}
    merged = {**good, **arguments}
    with pytest.raises(ValueError, match=message):
        draw_masks(merged.pop("image"), merged.pop("masks"), **merged)


def test_label_map_leaves_void_and_negative_pixels_alone() -> None:
    image = picture()
    labels = np.full((20, 30), -1)
    labels[:, 10:20], labels[:, 20:] = 0, 7
    drawn = draw_label_map(image, labels, void=0, alpha=1.0, outline=False)
    assert np.array_equal(drawn[:, :20], image[:, :20])
    assert (drawn[:, 20:] == palette([7])[0]).all()


def test_label_map_agrees_with_masks_of_the_same_regions() -> None:
    labels = np.zeros((20, 30), dtype=np.int64)
    labels[5:15, 5:25] = 3
    masks = np.stack([labels == 0, labels == 3])
    assert np.array_equal(draw_label_map(picture(), labels), draw_masks(picture(), masks, labels=[0, 3]))


def test_label_map_without_picture_is_opaque_on_dark_grey() -> None:
    labels = np.array([[0, -1]])
    assert draw_label_map(None, labels, outline=False).tolist() == [[palette([0])[0].tolist(), [BACKDROP] * 3]]


def test_label_map_refuses() -> None:
    with pytest.raises(ValueError, match="labels must be integers"):
        draw_label_map(None, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="labels must have the image's size"):
        draw_label_map(picture(), np.zeros((4, 4), dtype=int))


def test_boxes_frame_their_pixels_and_are_clipped() -> None:
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    drawn = draw_boxes(image, [(10, 8, 30, 28)], labels=[3])
    colour = palette([3])[0]
    assert (drawn[8, 12:28] == colour).all()
    assert (drawn[27, 12:28] == colour).all()
    assert np.array_equal(drawn[14:22, 14:26], image[14:22, 14:26])
    assert draw_boxes(image, [(-50, -50, 500, 500)]).shape == image.shape
    assert np.array_equal(draw_boxes(image, np.zeros((0, 4))), image)
    with pytest.raises(ValueError, match="boxes must be finite numbers"):
        draw_boxes(image, [(0, 0, np.nan, 1)])
    with pytest.raises(ValueError, match="one number per box"):
        draw_boxes(image, [(0, 0, 1, 1)], labels=[])


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (20, 30), (63, 31)])
def test_resize_to_gives_the_size(size: tuple[int, int]) -> None:
    assert resize_to(picture(), size).shape == (*size, 3)
    assert upsample_masks(np.ones((2, 3, 5), dtype=bool), size).all()


def test_resize_to_averages_where_it_shrinks() -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[::2, ::2] = 200
    assert (resize_to(image, (2, 2)) == 50).all()
    with pytest.raises(ValueError, match=r"size must be \(rows, columns\), each at least 1, got \(0, 3\)"):
        resize_to(image, (0, 3))


def test_upsampling_by_a_whole_factor_repeats_cells_and_comes_back() -> None:
    masks = np.random.default_rng(1).random((3, 5, 7)) < 0.5
    large = upsample_masks(torch.from_numpy(masks), (20, 28))
    assert np.array_equal(large, masks.repeat(4, axis=1).repeat(4, axis=2))
    assert np.array_equal(upsample_masks(large, (5, 7)), masks)
    assert upsample_masks(masks[:0], (6, 6)).shape == (0, 6, 6)


def test_upsampling_by_an_odd_ratio_agrees_with_torch() -> None:
    labels = torch.arange(35).reshape(1, 1, 5, 7)
    expected = torch.nn.functional.interpolate(labels.double(), size=(13, 16), mode="nearest-exact")[0, 0].long()
    assert np.array_equal(upsample_labels(labels[0, 0].numpy(), (13, 16)), expected.numpy())
    with pytest.raises(ValueError, match="at least one cell"):
        upsample_labels(np.zeros((0, 3), dtype=int), (2, 2))


def test_grid_places_cells_at_a_common_height() -> None:
    red, blue = np.zeros((10, 20, 3), dtype=np.uint8), np.zeros((40, 20, 3), dtype=np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    page = grid([[red, blue], [blue]], gap_px=6)
    assert page.shape == (6 + 2 * 46, 6 + 86 + 26, 3)
    assert (page[6:46, 6:86] == (255, 0, 0)).all()
    assert (page[6:46, 92:112] == (0, 0, 255)).all()
    assert (page[52:92, 36:56] == (0, 0, 255)).all()  # narrower than its column: in the middle
    assert (page[46:52] == 255).all()
    assert (page[52:92, 86:] == 255).all()


def test_grid_titles_stand_above_their_columns() -> None:
    dark = np.zeros((30, 100, 3), dtype=np.uint8)
    page = grid([[dark, dark]], ["left", ""], gap_px=4)
    assert page.shape == (30 + TITLE_PX + 8, 212, 3)
    assert (page[4 : 4 + TITLE_PX, 4:104] < 128).any()
    assert (page[4 : 4 + TITLE_PX, 108:208] == 255).all()
    assert grid([[dark]], height_px=60).shape == (72, 212, 3)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "rows must hold at least one image"),
        ([[]], {}, "rows must hold at least one image"),
        ([[np.zeros((2, 2, 3), dtype=np.uint8)]], {"titles": ["a", "b"]}, r"one text per column \(1\), got 2"),
        ([[np.zeros((2, 2, 3), dtype=np.uint8)]], {"gap_px": -1}, "gap_px must not be negative, got -1"),
        ([[np.zeros((2, 2, 3), dtype=np.uint8)]], {"height_px": 0}, "height_px must be at least 1, got 0"),
        ([[np.zeros((2, 2))]], {}, "image must be uint8"),
    ],
)
def test_grid_refuses(rows: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(rows, **options)


def test_caption_puts_text_above_the_picture_at_any_width() -> None:
    image = picture(10, 200)
    page = caption(image, "a title")
    assert np.array_equal(page[TITLE_PX:], image)
    assert (page[:TITLE_PX] < 128).any()
    for width in (1, 12, 60):
        assert caption(picture(5, width), "a title far too long for this picture").shape == (TITLE_PX + 5, width, 3)
    assert np.array_equal(caption(image, "täxt"), caption(image, "t?xt"))


def test_a_tint_lies_within_one_level_of_the_exact_blend() -> None:
    image, index = picture(300, 400), np.random.default_rng(1).integers(-1, 5, (300, 400))
    grey = image @ np.array([0.299, 0.587, 0.114])
    exact = 0.55 * (0.55 * image + 0.45 * grey[..., None]) + 0.45 * palette(range(5))[index]
    drawn = draw_label_map(image, index, alpha=0.45, outline=False)
    assert np.array_equal(drawn[index < 0], image[index < 0])
    assert np.abs(drawn - exact)[index >= 0].max() < 1


@pytest.mark.parametrize("size", [(40, 90), (20, 11), (7, 30), (64, 64)])
def test_masks_are_enlarged_and_reduced_by_their_cells(size: tuple[int, int]) -> None:
    masks = np.random.default_rng(2).random((6, 20, 30)) < 0.1
    masks[0], masks[1, 5:] = False, False
    rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(size, (20, 30), strict=True))
    assert np.array_equal(upsample_masks(masks, size), masks[:, rows[:, None], columns])
    assert upsample_masks(masks, size).flags.c_contiguous
