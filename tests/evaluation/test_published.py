from __future__ import annotations

import pytest

from s2uniseg_d2.evaluation.published import PROTOCOLS, PUBLISHED, published_rows
from s2uniseg_d2.evaluation.table import format_classes, format_comparison


def figure(method, data, protocol, metric):
    [value] = [
        row.figures[metric]
        for row in PUBLISHED
        if (row.method, row.trained_on, row.protocol) == (method, data, protocol)
        and metric in row.figures
        and "paper" in row.source
    ]
    return value


def test_the_table_was_copied_column_by_column():
    ours = ("S2-UniSeg", "ImageNet")
    assert figure(*ours, "coco_agnostic", "AP") == 14.2
    assert figure(*ours, "uvo", "AR@100") == 32.1
    assert figure(*ours, "cocostuff27", "mIoU") == 36.1
    assert [figure(*ours, "cityscapes", metric) for metric in ("PQ", "SQ", "RQ")] == [20.5, 60.1, 29.7]
    assert figure("U2Seg", "ImageNet", "coco_panoptic", "SQ") == 71.1
    assert figure("UnSAM", "SA-1B 0.4M", "coco_agnostic", "AR@1000") == 42.0
    assert figure("STEGO", "COCOStuff", "cocostuff27", "PixelAcc") == 56.9
    assert figure("S2-UniSeg", "SA-1B 2.0M", "cityscapes", "RQ") == 35.2


def test_every_row_of_the_paper_is_in_its_text(shared_data):
    text = shared_data.parent / "seeds" / "s2uniseg.txt"
    if not text.is_file():
        pytest.skip("the paper's text does not lie beside the checkout")
    methods = ("STEGO", "CutLER", "U2Seg", "S2-UniSeg", "UNSAM")
    table = [line for line in text.read_text().splitlines() if line.startswith(methods) and "\t" in line]
    cells = [[float(cell) for cell in line.split("\t")[1:] if cell.strip("- ")] for line in table]
    told = {}
    for row in PUBLISHED:
        if row.source.endswith("Table 2"):
            told.setdefault((row.method, row.trained_on), []).extend(row.figures.values())
    assert len(table) == len(told) == 8
    assert sorted(cells) == sorted(told.values())


def test_every_row_has_a_source_and_a_known_protocol():
    assert {row.protocol for row in PUBLISHED} == set(PROTOCOLS)
    for row in PUBLISHED:
        assert row.source
        assert row.figures
        assert row.is_claim == (row.method in ("S2-UniSeg", "UniAP"))


def test_a_protocol_without_a_name_has_no_rows_and_a_wrong_name_is_refused():
    assert published_rows("", "segm_agnostic") == []
    assert published_rows("cocostuff27", "segm_agnostic") == []
    with pytest.raises(ValueError, match=r"EVALUATION\.PROTOCOL must be empty or one of"):
        published_rows("coco", "segm_agnostic")


def cells_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


MAPPED = {
    "PixelAcc_hungarian": 40.0,
    "mIoU_hungarian": 12.345,
    "PixelAcc_majority": 50.0,
    "mIoU_majority": 20.0,
    "IoU_majority-sky": 33.3,
    "IoU_majority-sea": float("nan"),
    "ACC_majority-sky": 44.4,
    "votes_hungarian-a": 7.0,
    "votes_majority-a": 7.0,
}


def test_ours_stand_before_the_published_rows_with_their_sources():
    results = {"cocostuff27_val": {"sem_seg_mapped": MAPPED}, "other": {"sem_seg_mapped": MAPPED}}
    tables = format_comparison(results, "cocostuff27")
    title = "cocostuff27: sem_seg_mapped on cocostuff27_val"
    assert next(iter(tables)) == title
    assert "not the protocol's data" in list(tables)[1]
    lines = cells_of(tables[title])
    assert lines[0] == ["method", "PixelAcc", "mIoU", "source"]
    assert lines[2] == ["ours, this run: hungarian mapping fitted on a", "40.00", "12.35", "measured here"]
    assert lines[3][1:3] == ["50.00", "20.00"]
    assert lines[4][:3] == ["STEGO (COCOStuff)", "56.9", "28.2"]
    assert ["S2-UniSeg (ImageNet)", "68.4", "36.1", "S2-UniSeg paper, Table 2, its own claim"] in lines
    assert any(line[0].startswith("[1] one-to-one mapping") for line in lines)
    assert format_comparison(results, "") == {}


def test_times_stand_beside_published_times():
    [table] = format_comparison({"a": {"segm_agnostic": {"AP": 1.0}}}, "pseudo_masks", {"a": 0.01234}).values()
    lines = cells_of(table)
    assert lines[0] == ["method", "AP", "s/picture", "source"]
    assert lines[2][:3] == ["ours, this run", "1.00", "0.012"]
    assert any(line[:3] == ["UniAP", "6.2", "0.045"] for line in lines)


def test_classes_have_a_row_each():
    tables = format_classes({"a": {"sem_seg_mapped": MAPPED, "segm_agnostic": {"AP": 1.0}}})
    assert list(tables) == ["sem_seg_mapped on a"]
    lines = cells_of(tables["sem_seg_mapped on a"])
    assert lines[0] == ["class", "IoU_majority", "ACC_majority"]
    assert lines[2:] == [["sky", "33.30", "44.40"]]
