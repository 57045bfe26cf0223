from __future__ import annotations

import json
import os

from s2uniseg_d2.engine.evaluation_record import data_digest
from s2uniseg_d2.engine.evaluation_report import append_metrics


def test_the_digest_sees_pictures_and_truth(tmp_path):
    truth, labels = tmp_path / "truth.json", tmp_path / "a.png"
    truth.write_text("{}")
    labels.write_bytes(b"1")
    records = [{"file_name": "a.jpg", "image_id": 1, "sem_seg_file_name": str(labels)}]
    first = data_digest(records, [str(truth)])
    assert data_digest(records, [str(truth)]) == first
    assert data_digest([{**records[0], "image_id": 2}], [str(truth)]) != first
    for changed in (truth, labels):
        os.utime(changed, ns=(1, 1))
        again = data_digest(records, [str(truth)])
        assert again != first
        first = again


def test_figures_that_json_cannot_spell_become_null(tmp_path):
    append_metrics(tmp_path / "metrics.json", {"sem_seg": {"IoU-absent": float("nan"), "mIoU": 1.5}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"sem_seg": {"IoU-absent": None, "mIoU": 1.5}}
