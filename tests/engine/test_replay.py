"""A step that is not finite stops the run with the model as it was, and can be run again."""

from __future__ import annotations

import re

import pytest
import torch
from detectron2.engine import HookBase

from s2uniseg_d2.engine.checkpoint_files import resume_candidates
from s2uniseg_d2.engine.hooks import unwrap
from s2uniseg_d2.engine.replay import load_replay, run_again
from s2uniseg_d2.engine.tracing import FiniteTrace
from s2uniseg_d2.engine.trainer import Trainer
from tests.engine.test_train_net import command
from tests.tiny import SHARED, tiny_config, tiny_words, write_pictures
from tools.replay_batch import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


class Spoil(HookBase):
    """Changes the model before the step of one iteration, and remembers what the step then began with."""

    def __init__(self, iteration, spoil):
        self.iteration, self.spoil = iteration, spoil

    def before_step(self):
        if self.trainer.iter == self.iteration:
            model = unwrap(self.trainer.model)
            with torch.no_grad():
                self.spoil(model)
            self.state = {name: value.clone() for name, value in model.state_dict().items()}


def stop(pictures, output, spoil, *, iteration=1, **settings):
    """Train until the spoilt step stops the run; returns the trainer, the hook and what the error says."""
    settings = {"MODEL__VIT__DROP_PATH": 0.4, "SEED": 3} | settings
    cfg = tiny_config(DATASETS__TRAIN=f"('folder:{pictures}',)", OUTPUT_DIR=output, **settings)
    output.mkdir(exist_ok=True)
    torch.manual_seed(0)
    trainer, hook = Trainer(cfg), Spoil(iteration, spoil)
    trainer.register_hooks([hook])
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    return trainer, hook, str(raised.value)


def spoil_projection(model):
    model.query_proj.weight[0, 0] = float("nan")


def test_a_loss_that_is_not_finite_is_named_kept_and_met_again(pictures, tmp_path, capsys):
    trainer, hook, said = stop(pictures, tmp_path, spoil_projection)
    file = tmp_path / "replay" / "iteration_0000001" / "rank_0.pth"
    assert said.startswith("iteration 1: loss_query_sd = nan; stopped before the optimizer step; ")
    assert said.endswith(f"tools/replay_batch.py {file} runs it again")
    after = unwrap(trainer.model).state_dict()
    assert all(torch.equal(after[name], value) or name == "query_proj.weight" for name, value in hook.state.items())
    record = torch.load(file, weights_only=True)
    assert record["pictures"] == [item["file_name"] for item in record["batch"]]
    assert all(name.endswith(".png") and str(pictures) in name for name in record["pictures"])
    assert resume_candidates(tmp_path) == []

    assert main([str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "first output that is not finite: query_proj (Linear), " in "\n".join(lines)
    assert any(line.endswith("its weight is not finite") for line in lines)
    assert lines[-1] == "run again: loss_query_sd = nan"


@pytest.mark.parametrize(
    "settings",
    [{}, {"SOLVER__ACCUMULATION_STEPS": 2, "SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16"}],
    ids=["whole", "parts in bfloat16"],
)
def test_every_loss_of_the_step_comes_again_to_the_last_bit(pictures, tmp_path, settings):
    stop(pictures, tmp_path, spoil_projection, **settings)
    replay = load_replay(tmp_path / "replay" / "iteration_0000001" / "rank_0.pth")
    losses, wrong = run_again(replay)
    kept = replay.record["losses"]
    assert wrong == "loss_query_sd = nan"
    assert len(losses) > 10
    assert {name for name in kept if kept[name] != losses[name]} == {"loss_query_sd"}  # nan is no equal of itself
    # ... and other draws, or another centre, would give others
    replay.record["generators"]["cpu"] = torch.Generator().manual_seed(1).get_state()
    again = load_replay(tmp_path / "replay" / "iteration_0000001" / "rank_0.pth")
    again.record["generators"] = replay.record["generators"]
    assert run_again(again)[0] != losses


def test_a_step_that_is_finite_this_time_says_so(pictures, tmp_path, capsys):
    stop(pictures, tmp_path, spoil_projection)
    folder = tmp_path / "replay" / "iteration_0000001"
    state = torch.load(folder / "state.pth", weights_only=True)
    state["model"]["query_proj.weight"][0, 0] = 0.0
    torch.save(state, folder / "state.pth")
    assert main([str(folder / "rank_0.pth")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run again: everything is finite"


def test_a_gradient_that_is_not_finite_is_named_by_its_parameter(pictures, tmp_path, capsys):
    # the loss is finite, what a large weight makes of its gradient is not
    settings = {"MODEL__LOSS__QUERY_SD_WEIGHT": 3e37}
    trainer, hook, said = stop(pictures, tmp_path, lambda model: None, iteration=0, **settings)
    found = re.match(r"iteration 0: gradient norm = (inf|nan): (gradient of \S+ = \S+ .*); stopped before the", said)
    assert found, said
    after = unwrap(trainer.model).state_dict()
    assert all(torch.equal(after[name], value) for name, value in hook.state.items())
    assert main([str(tmp_path / "replay" / "iteration_0000000" / "rank_0.pth")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "first gradient of an output that is not finite: " in "\n".join(lines)
    assert not any(line.startswith("first output") for line in lines)
    assert lines[-1] == f"run again: {found[2]}"


def test_features_of_the_teacher_that_are_not_finite_keep_the_unlabelled_batch(pictures, tmp_path, capsys):
    def spoil(model):
        model.teacher_backbone.trunk.vit.norm.bias[0] = float("inf")

    _, _, said = stop(pictures, tmp_path, spoil)
    assert said.startswith("iteration 1: the teacher's features are not finite; stopped before the optimizer step; ")
    file = tmp_path / "replay" / "iteration_0000001" / "rank_0.pth"
    assert "pseudo" not in torch.load(file, weights_only=True)["batch"][0]
    assert main([str(file)]) == 1
    said = capsys.readouterr().out
    assert "first output that is not finite: teacher_backbone.trunk.vit.norm (LayerNorm), " in said
    assert said.splitlines()[-1] == "run again: the teacher's features are not finite"


def test_a_file_that_is_no_step_is_refused(tmp_path, capsys):
    torch.save({"model": {}}, tmp_path / "model.pth")
    torch.save({"format": 2, "batch": [], "generators": {}, "iteration": 0, "teacher_temp": 0.1}, tmp_path / "new.pth")
    for name, message in [
        ("none.pth", "weights file does not exist"),
        ("model.pth", "must be a file that a stopped run left, it lacks batch, format, generators"),
        ("new.pth", "must be of format 1, got 2"),
    ]:
        assert main([str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_does_not_hide_the_reason(pictures, tmp_path):
    tmp_path.joinpath("replay").write_text("in the way")
    _, _, said = stop(pictures, tmp_path, spoil_projection)
    assert said.startswith(
        "iteration 1: loss_query_sd = nan; stopped before the optimizer step; it cannot be run again: "
    )


@pytest.mark.slow
def test_two_processes_stop_together_and_each_keeps_its_part(repository, pictures, tmp_path, capsys):
    settings = SHARED | {
        "MODEL__VIT_ADAPTER__NORM": "SyncBN",
        "DATASETS__TRAIN": f"('folder:{pictures}',)",
        "MODEL__LOSS__QUERY_SD_WEIGHT": "1e39",
        "OUTPUT_DIR": tmp_path,
    }
    result = command(repository, "--num-gpus", 2, "--dist-url", "auto", *tiny_words(**settings), check=False)
    assert result.returncode == 1
    assert "iteration 0: loss_query_sd = inf; stopped before the optimizer step" in result.stderr.splitlines()[-1]
    folder = tmp_path / "replay" / "iteration_0000000"
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "rank_0.pth", "rank_1.pth", "state.pth"]
    names = [torch.load(folder / f"rank_{rank}.pth", weights_only=True)["pictures"] for rank in range(2)]
    assert len({*names[0], *names[1]}) == 2
    for rank in range(2):
        assert main([str(folder / f"rank_{rank}.pth")]) == 1
        assert capsys.readouterr().out.splitlines()[-1] == "run again: loss_query_sd = inf"


def test_the_inner_module_is_found_first_and_its_origin_told():
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.ReLU())
    with FiniteTrace(model) as trace:
        model(torch.tensor([[1.0, float("nan")]]))
    assert trace.output == ("0.0", "Linear", (1, 2), 2, "its input is not finite, and comes from no module")
    with FiniteTrace(model) as trace:
        (model(torch.ones(1, 2)) * float("inf")).sum().backward()
    assert trace.output is None
    assert trace.gradient.module == "1"
    with FiniteTrace(model) as trace:
        model(torch.ones(1, 2))
    assert (trace.output, trace.gradient) == (None, None)
