from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from s2uniseg_d2.engine import panel
from s2uniseg_d2.engine.drawing import draw_label_map, draw_masks, palette, upsample_labels, upsample_masks
from s2uniseg_d2.engine.panel import ComparisonRow, draw_comparison, draw_training_batch, write_png

GAP, TITLE = 6, 24


def pseudo_masks(masks: list[torch.Tensor], levels: list[int], grid: tuple[int, int] = (16, 24)) -> PseudoMasks:
    stacked = torch.stack(masks) if masks else torch.zeros(0, *grid, dtype=torch.bool)
    return PseudoMasks(stacked, torch.zeros(len(masks), 3), torch.tensor(levels, dtype=torch.int64))


def box_mask(top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def make_item(views: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    left, right = box_mask(0, 0, 16, 12), box_mask(0, 12, 16, 24)
    instance = pseudo_masks([left, right, left | right], [0, 0, 2])
    semantic = pseudo_masks([left, right, left | right], [0, 0, 1])
    return {
        "image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=generator),
        "views": torch.randint(0, 256, (views, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0], [32.0, 16.0, 80.0, 64.0], [0.0, 0.0, 96.0, 64.0]])[:views],
        "flips": torch.tensor([False, True, False])[:views],
        "pseudo": PseudoLabels(instance, semantic),
    }


def columns(page: np.ndarray, widths: list[int]) -> list[np.ndarray]:
    cells, x = [], GAP
    for width in widths:
        cells.append(page[GAP + TITLE : -GAP, x : x + width])
        x += width + GAP
    assert x == page.shape[1]
    return cells


def test_training_batch_shows_what_the_labels_say() -> None:
    item = make_item()
    page = draw_training_batch(item, height_px=64)
    cells = columns(page, [96] * 5 + [64 * 2 + GAP])
    image = item["image"].permute(1, 2, 0).numpy()
    first = upsample_labels((np.arange(24) >= 12).astype(int)[None].repeat(16, axis=0), (64, 96))
    assert np.array_equal(cells[1], draw_label_map(image, first))
    last = np.full((64, 96), 2)
    assert np.array_equal(cells[3], draw_label_map(image, last))
    assert np.array_equal(cells[4], draw_masks(image, np.ones((1, 64, 96), dtype=bool), labels=[2]))
    assert (cells[0] != image).any()
    for number, x in enumerate((0, 64 + GAP)):
        assert (cells[5][1, x + 2 : x + 62] == palette([number])[0]).all()


def test_boxes_scale_with_the_picture() -> None:
    item = make_item(1)
    item["image"] = torch.full_like(item["image"], 128)
    first = columns(draw_training_batch(item, height_px=128), [192] * 5 + [128])[0]
    rows, cols = np.nonzero((first == palette([0])[0]).all(axis=-1))
    # the box (8, 8, 40, 40) at twice its size, its line two pixels wide around the last pixels inside
    assert abs(rows.min() - 16) <= 1
    assert abs(cols.min() - 16) <= 1
    assert abs(rows.max() - 79) <= 1
    assert abs(cols.max() - 79) <= 1


def test_a_mask_left_unchanged_by_later_layers_stays_in_the_partition() -> None:
    item = make_item()
    parts = [box_mask(0, 0, 16, 6), box_mask(0, 6, 16, 12), box_mask(0, 12, 16, 24), box_mask(0, 0, 16, 12)]
    item["pseudo"] = PseudoLabels(pseudo_masks(parts, [0, 0, 0, 1]), pseudo_masks([], []))
    page = draw_training_batch(item, height_px=64)
    last = columns(page, [96] * 5 + [64 * 2 + GAP])[3]
    labels = np.where(np.arange(96) < 48, 3, 2)[None].repeat(64, axis=0)
    assert np.array_equal(last, draw_label_map(item["image"].permute(1, 2, 0).numpy(), labels))


def test_a_flipped_view_is_shown_with_flipped_masks() -> None:
    item = make_item(3)
    item["views"] = torch.zeros_like(item["views"])
    item["boxes"] = item["boxes"][2:].expand(3, 4)
    item["pseudo"] = PseudoLabels(pseudo_masks([box_mask(0, 0, 16, 12)], [0]), pseudo_masks([], []))
    page = draw_training_batch(item, height_px=70)
    width = round(96 * 70 / 64)
    views = columns(page, [width] * 5 + [32 * 2 + GAP])[5]
    plain, flipped = views[:32, :32], views[:32, 32 + GAP :]
    assert plain[16, 8].any()
    assert not plain[16, 24].any()
    assert flipped[16, 24].any()
    assert not flipped[16, 8].any()


def test_given_crops_are_drawn_as_they_are() -> None:
    item = make_item()
    empty = [torch.zeros(0, 8, 8, dtype=torch.bool)] * 2
    full = [torch.ones(1, 8, 8, dtype=torch.bool)] * 2
    assert not np.array_equal(draw_training_batch(item, empty), draw_training_batch(item, full))
    with pytest.raises(ValueError, match=r"cropped must hold one entry per view \(2\), got 1"):
        draw_training_batch(item, full[:1])


@pytest.mark.parametrize("views", [0, 1, 2, 3])
def test_any_number_of_views_and_no_masks(views: int) -> None:
    item = make_item(views)
    item["pseudo"] = PseudoLabels(pseudo_masks([], []), pseudo_masks([], []))
    page = draw_training_batch(item, height_px=64)
    assert page.dtype == np.uint8
    assert page.shape[0] == 64 + TITLE + 2 * GAP


def test_training_batch_names_missing_keys() -> None:
    item = make_item()
    del item["pseudo"], item["flips"]
    with pytest.raises(ValueError, match="got none of flips, pseudo"):
        draw_training_batch(item)


def comparison_row(**changes: object) -> ComparisonRow:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    masks = np.zeros((3, 32, 48), dtype=bool)
    for number in range(3):
        masks[number, 4:28, 16 * number : 16 * number + 12] = True
    labels = masks.argmax(axis=0)
    scores = torch.tensor([0.1, 0.9, 0.5])
    return ComparisonRow(image, masks[:, ::4, ::4], masks, scores, labels, labels, masks)._replace(**changes)


def test_comparison_draws_the_best_scores_in_their_order() -> None:
    row = comparison_row()
    cells = columns(draw_comparison([row], top=2, height_px=32), [48] * 6)
    assert np.array_equal(cells[0], row.image)
    assert np.array_equal(cells[1], draw_masks(row.image, upsample_masks(row.pseudo_instances, (32, 48))))
    assert np.array_equal(cells[2], draw_masks(row.image, row.instances[[1, 2]]))
    assert np.array_equal(cells[3], draw_label_map(row.image, row.semantic))
    assert np.array_equal(cells[4], draw_label_map(row.image, row.panoptic, void=0))
    assert np.array_equal(cells[5], draw_masks(row.image, row.truth))


def test_columns_that_no_row_fills_are_left_out_and_gaps_are_white() -> None:
    bare = comparison_row(truth=None, panoptic=None, semantic=None)
    page = draw_comparison([bare], height_px=32)
    columns(page, [48] * 3)
    both = draw_comparison([bare, comparison_row(panoptic=None)], height_px=32)
    assert (both[GAP + TITLE : GAP + TITLE + 32, -(48 + GAP) :] == 255).all()


def test_comparison_takes_tensors_channel_first_and_ties() -> None:
    row = comparison_row(scores=None)
    tensors = ComparisonRow(
        torch.from_numpy(row.image).permute(2, 0, 1),
        *(torch.from_numpy(value) for value in (row.pseudo_instances, row.instances)),
        torch.ones(3),
        *(torch.from_numpy(value) for value in (row.semantic, row.panoptic, row.truth)),
    )
    assert np.array_equal(draw_comparison([tensors]), draw_comparison([row]))


def test_comparison_refuses() -> None:
    with pytest.raises(ValueError, match="rows must hold at least one"):
        draw_comparison([])
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        draw_comparison([comparison_row()], top=0)
    with pytest.raises(ValueError, match=r"scores must hold one number per instance \(3\)"):
        draw_comparison([comparison_row(scores=np.zeros(2))])


def test_write_png_keeps_colours_and_makes_the_folder(tmp_path: Path) -> None:
    image = comparison_row().image
    path = tmp_path / "new" / "picture.png"
    write_png(path, image)
    write_png(path, image)
    assert np.array_equal(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), image)
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_a_failed_write_leaves_the_old_picture_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    write_png(path, comparison_row().image)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(panel.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, np.zeros((2, 2, 3), dtype=np.uint8))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_write_png_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'picture\.jpg'"):
        write_png(tmp_path / "picture.jpg", np.zeros((2, 2, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="image must be uint8"):
        write_png(tmp_path / "picture.png", np.zeros((2, 2), dtype=np.uint8))
