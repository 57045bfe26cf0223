"""Two processes must give what one gives, whatever the shares of the pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from s2uniseg_d2.evaluation import (
    AgnosticCOCOEvaluator,
    MappedCOCOEvaluator,
    MappedPanopticEvaluator,
    MappedSemSegEvaluator,
)

from .conftest import predict

STRATEGIES = ("hungarian", "majority", "hungarian_then_majority")
# which pictures each process sees: uneven, in another order; all in one; one picture in both, as padding samplers do
SHARDS = (((2,), (3, 1, 0)), ((3, 2, 1, 0), ()), ((0, 1, 2), (3, 0)))


def evaluate_all(name, folder, pairs):
    """Results of all four evaluators and the scores of single pictures, by JSON's rules for keys."""
    mapped = {"num_clusters": 7, "strategies": STRATEGIES}
    evaluators = [
        AgnosticCOCOEvaluator(name, True, f"{folder}/agnostic", max_dets=(1, 10, 100, 1000), tasks=("segm", "bbox")),
        MappedCOCOEvaluator(name, True, f"{folder}/instance", **mapped),
        MappedSemSegEvaluator(name, True, f"{folder}/semantic", **mapped, vote="masks", write_maps=True),
        MappedPanopticEvaluator(name, f"{folder}/panoptic", **mapped),
    ]
    found = []
    for evaluator in evaluators:
        evaluator.reset()
        for entry, output in pairs:
            evaluator.process([entry], [output])
        found.append([evaluator.evaluate(), evaluator.per_picture])
    return json.loads(json.dumps(found))


def work(rank, folder, name, records, metadata, outputs):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**metadata)
    for number, shares in enumerate(SHARDS):
        found = evaluate_all(name, f"{folder}/two{number}", [(records[i], outputs[i]) for i in shares[rank]])
        with open(f"{folder}/found{number}_{rank}.json", "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(scenes, tmp_path):
    outputs = [predict(scenes, r["image_id"], rename=[6, 0, 4, 1, 2].__getitem__) for r in scenes.records]
    expected = evaluate_all(scenes.name, tmp_path / "one", list(zip(scenes.records, outputs, strict=True)))
    assert [len(scores) for _, scores in expected] == [4, 4, 4, 4]
    metadata = {key: value for key, value in MetadataCatalog.get(scenes.name).as_dict().items() if key != "name"}
    job = (str(tmp_path), scenes.name, scenes.records, metadata, outputs)
    torch.multiprocessing.spawn(work, job, nprocs=2)
    written = files_below(tmp_path / "one")
    assert len([name for name in written if name.endswith(".png")]) == 2 * 4 * (1 + len(STRATEGIES))
    for number in range(len(SHARDS)):
        found = json.loads((tmp_path / f"found{number}_0.json").read_text())
        np.testing.assert_equal(found, expected)
        assert files_below(tmp_path / f"two{number}") == written
        others = json.loads((tmp_path / f"found{number}_1.json").read_text())
        assert all(not results and not scores for results, scores in others)
