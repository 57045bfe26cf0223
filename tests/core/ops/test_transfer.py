from __future__ import annotations

import torch

from s2uniseg_d2.core.ops.transfer import ask, to_device


def test_one_question_answers_for_all_vectors():
    values = [torch.tensor([3, -1]), torch.tensor([], dtype=torch.int64), torch.tensor([2**40])]
    assert ask(*values) == [[3, -1], [], [2**40]]


def test_what_is_there_is_not_copied():
    values = torch.ones(3)
    assert to_device(values, torch.device("cpu")) is values
