from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_coding
from torch import nn
from torch.nn import functional

from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.data.pictures import PictureError
from s2uniseg_d2.evaluation import AgnosticCOCOEvaluator
from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from s2uniseg_d2.labeling.table1 import evaluate_labels, format_table1
from s2uniseg_d2.pseudo_masks import main
from tests.evaluation.conftest import make_instances
from tests.tiny import tiny_words

SIZE = (32, 64)
GREY, RED, GREEN, BLUE = (90, 90, 90), (200, 0, 0), (0, 200, 0), (0, 0, 200)
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 8, "name": "green"}, {"id": 9, "name": "blue"}]


@pytest.fixture(autouse=True)
def _clean_catalogs():
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)


class Colours(nn.Module):
    """An encoder whose features are the mean colours of the tokens, 0 to 255."""

    def pooling_features(self, images, stride):
        return functional.avg_pool2d(images, stride)


class ByColour:
    """One instance and one semantic mask for every colour but grey; grey comes last, at level 0."""

    def __call__(self, features, sizes=None):
        labels = []
        for picture, (rows, columns) in zip(features, sizes, strict=True):
            tokens = picture[:, :rows, :columns]
            colours = torch.unique(tokens.flatten(1).T.round(), dim=0)
            masks = (tokens.round()[None] == colours[:, :, None, None]).all(dim=1)
            full = torch.zeros(len(colours), *features.shape[2:], dtype=torch.bool)
            full[:, :rows, :columns] = masks
            is_grey = (colours == torch.tensor(GREY)).all(dim=1)
            order = (~is_grey).long().argsort(stable=True)
            level = (~is_grey).long()[order]
            kind = PseudoMasks(full[order], functional.normalize(colours[order] + 1), level)
            labels.append(PseudoLabels(kind, kind))
        return labels


@pytest.fixture
def maker():
    return PseudoMaskMaker(Colours(), ByColour(), image_size=64, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1))


def place(row, column, rows=8, columns=12):
    mask = np.zeros(SIZE, bool)
    mask[row : row + rows, column : column + columns] = True
    return mask


def write_data(folder, pictures):
    """A COCO data set of coloured rectangles: per picture (colour, mask, category id, whether it is in the truth)."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, objects in enumerate(pictures, start=1):
        pixels = np.full((*SIZE, 3), GREY, np.uint8)
        for colour, mask, category, is_true in objects:
            pixels[mask] = colour
            if is_true:
                coded = mask_coding.encode(np.asfortranarray(mask.astype(np.uint8)))
                box = mask_coding.toBbox(coded).tolist()
                coded["counts"] = coded["counts"].decode()
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
                annotations.append({**entry, "segmentation": coded, "bbox": box, "area": int(mask.sum())})
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "truth.json").write_text(json.dumps(content))
    return f"coco:{folder / 'truth.json'}:{folder / 'images'}"


def test_masks_that_are_the_truth_reach_every_mark(maker, tmp_path):
    name = write_data(
        tmp_path / "data",
        [
            [(RED, place(4, 8), 3, True), (GREEN, place(20, 40), 8, True)],
            [(GREEN, place(0, 0), 8, True), (BLUE, place(12, 32), 9, True)],
        ],
    )
    results = evaluate_labels(maker, name, tmp_path / "out", weights="colours")
    assert {results["segm_agnostic"][key] for key in ("AP", "AP@1000", "AR@100", "AR@1000")} == {100.0}
    assert results["sem_seg_clustered"]["mIoU_hungarian"] == 100.0
    assert results["about"]["num_clusters"] == 3
    assert results["about"]["instance_masks"] == 3  # grey too
    seconds = results["seconds"]
    assert seconds["picture"] == pytest.approx(seconds["encoder"] + seconds["labeler"])
    assert min(seconds.values()) > 0
    written = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert written["segm_agnostic"]["APl"] is None  # no large object: nan
    assert {key: value for key, value in written.items() if key != "segm_agnostic"} == {
        key: value for key, value in results.items() if key != "segm_agnostic"
    }
    assert (tmp_path / "out" / "table1.txt").read_text() == format_table1(results) + "\n"


def test_a_missed_object_halves_recall_and_ap(maker, tmp_path):
    hidden = (GREY, place(20, 40), 8, True)
    results = evaluate_labels(maker, write_data(tmp_path, [[(RED, place(4, 8), 3, True), hidden]]))
    figures = results["segm_agnostic"]
    assert figures["AR@100"] == pytest.approx(50.0)
    assert figures["AP"] == pytest.approx(100 * 51 / 101)  # precision 1 at the recalls 0, 0.01 ... 0.5
    # red right: 1; green's pixels have the grey mask, whose cluster is green's alone: right too
    assert results["sem_seg_clustered"]["mIoU_hungarian"] == pytest.approx(100.0)


def test_ap_is_the_agnostic_evaluators(maker, tmp_path):
    objects = [
        [(RED, place(4, 8), 3, True), (GREEN, place(20, 40), 8, False), (GREY, place(0, 40), 9, True)],
        [(BLUE, place(16, 16, 8, 24), 9, True), (GREY, place(16, 40, 8, 4), 9, True)],
        [(RED, place(0, 0, 32, 28), 3, False)],
    ]
    name = write_data(tmp_path, objects)
    results = evaluate_labels(maker, name)
    evaluator = AgnosticCOCOEvaluator(resolve_dataset(name), distributed=False, max_dets=(1, 10, 100, 1000))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        with Image.open(record["file_name"]) as picture:
            found = maker(np.asarray(picture)).instance
        instances = make_instances(found.masks, found.scores.round(4), np.zeros(len(found.scores)), SIZE)
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": instances}])
    wanted = evaluator.evaluate()["segm_agnostic"]
    assert 0 < wanted["AP"] < 100
    assert results["segm_agnostic"] == pytest.approx(wanted, nan_ok=True)


def test_a_limit_takes_the_first_pictures_and_their_truth_alone(maker, tmp_path):
    name = write_data(tmp_path, [[(RED, place(4, 8), 3, True)], [(GREY, place(4, 8), 3, True)]])
    assert evaluate_labels(maker, name)["segm_agnostic"]["AR@100"] == pytest.approx(50.0)
    results = evaluate_labels(maker, name, limit=1)
    assert results["segm_agnostic"]["AR@100"] == pytest.approx(100.0)
    assert results["about"]["pictures"] == 1


def test_semantic_maps_are_the_truth_where_there_are_any(maker, tmp_path):
    name = write_data(tmp_path, [[(RED, place(4, 8), 3, True)]])
    truth = np.zeros(SIZE, np.uint8)
    truth[4:10, 8:20], truth[10:12, 8:20] = 1, 255
    Image.fromarray(truth).save(tmp_path / "1_map.png")
    records = [
        {
            "file_name": str(tmp_path / "images" / "1.png"),
            "image_id": 1,
            "sem_seg_file_name": str(tmp_path / "1_map.png"),
        }
    ]
    DatasetCatalog.register("mapped", lambda: records)
    MetadataCatalog.get("mapped").set(stuff_classes=["ground", "thing"], ignore_label=255)
    results = evaluate_labels(maker, "mapped")
    assert "segm_agnostic" not in results
    assert results["about"]["semantic_truth"] == "semantic maps, 2 classes"
    assert results["sem_seg_clustered"]["mIoU_hungarian"] == 100.0
    assert "| - |" in format_table1(results).replace("  ", "")
    truth[0, 0] = 7
    Image.fromarray(truth).save(tmp_path / "1_map.png")
    with pytest.raises(ValueError, match=r"labels below 2 or 255, got label 7"):
        evaluate_labels(maker, "mapped")
    assert name


def test_smaller_objects_lie_over_larger_ones_and_crowds_under_all(maker, tmp_path):
    from s2uniseg_d2.labeling.table1 import _paint_objects

    def entry(mask, category, crowd=0):
        coded = mask_coding.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"segmentation": coded, "category_id": category, "iscrowd": crowd}

    small, large, crowd = place(4, 8, 2, 2), place(0, 0, 8, 12), place(4, 8, 1, 1)
    record = {"annotations": [entry(small, 1), entry(large, 0), entry(crowd, 2, 1), entry(place(20, 0, 1, 1), 2, 1)]}
    labels = _paint_objects(record, SIZE, num_classes=3)
    assert (labels[small] == 1).all()
    assert (labels[large & ~small] == 0).all()
    assert labels[20, 0] == 2
    assert (labels == 3).sum() == labels.size - (large | small).sum() - 1


def test_the_table_names_the_papers_rows_as_the_papers(maker, tmp_path):
    results = evaluate_labels(maker, write_data(tmp_path, [[(RED, place(4, 8), 3, True)]]), weights="colours alone")
    text = format_table1(results)
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    assert rows["UniAP (the paper's figures)"] == ["0.045", "6.2", "-", "-", "21.8", "-", "yes", "yes"]
    assert rows["MaskCut + STEGO (the paper's figures)"] == ["4.86", "6.7", "-", "-", "26.3", "-", "yes", "no"]
    assert rows["TokenCut (the paper's figures)"][:2] == ["2.25", "3.5"]
    assert rows["UniAP (this run)"][1:6] == ["100.0"] * 5
    assert list(rows)[-1] == "UniAP (this run)"
    assert "colours alone" in text
    assert "not comparable with them" in text


def test_a_real_encoder_runs_on_photographs(shared_data):
    maker = PseudoMaskMaker.from_pretrained("", overrides=tiny_words())
    name = f"coco:{shared_data}/coco64/instances.json:{shared_data}/coco64/images"
    results = evaluate_labels(maker, name, limit=2)
    figures = results["segm_agnostic"] | results["sem_seg_clustered"]
    assert all(0 <= figures[key] <= 100 for key in ("AP", "AR@100", "AR@1000", "mIoU_hungarian", "mIoU_majority"))


def test_what_cannot_be_evaluated_is_refused(maker, tmp_path, monkeypatch):
    name = write_data(tmp_path, [[(RED, place(4, 8), 3, True)]])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        evaluate_labels(maker, name, limit=0)
    with pytest.raises(ValueError, match="has neither instances nor semantic maps"):
        evaluate_labels(maker, f"folder:{tmp_path / 'images'}")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "1.png")
    with pytest.raises(PictureError, match=r"1.png is 9 x 9 .* truth is made for 64 x 32"):
        evaluate_labels(maker, name)
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(ValueError, match="missing"):
        evaluate_labels(maker, name)


def test_the_command_prints_the_table_and_leaves_it_in_a_folder(tmp_path, capsys):
    name = write_data(tmp_path, [[(RED, place(4, 8), 3, True)], [(BLUE, place(4, 8), 9, True)]])
    words = ["--evaluate", name, "--limit", "1", "--weights", "", "--output", str(tmp_path / "out")]
    assert main([*words, "--", *tiny_words()]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "out" / "table1.txt").read_text()
    assert f"This run: {name}, 1 picture, random weights, 96 px, cpu;" in text
    assert json.loads((tmp_path / "out" / "table1.json").read_text())["about"]["pictures"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluate", "coco:a:b", "--input", "c"], "--evaluate stands alone"),
        (["--evaluate", "coco:a.json:b"], "a.json"),
        (["--evaluate", "nothing"], "unknown data set 'nothing'"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(words, message, capsys):
    assert main([*words, "--weights", "", "--", *tiny_words()]) == (2 if message.startswith("--") else 1)
    # other tests of the process may have sent warnings to stderr as well
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pseudo_masks: ")]
    assert message in line
