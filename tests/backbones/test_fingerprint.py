import copy
from pathlib import Path

import pytest
import torch

from cee_gym import MultiExitModel
from cee_gym.backbones.fingerprint import fingerprint


def test_a_copy_has_the_same_fingerprint(tiny_model: MultiExitModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    loaded = MultiExitModel.from_pretrained(tmp_path)
    assert fingerprint(tiny_model) == fingerprint(loaded) == fingerprint(copy.deepcopy(tiny_model))
    assert tiny_model.fingerprint == fingerprint(tiny_model)


@pytest.mark.parametrize("part", ["backbone", "poolers", "heads"])
def test_one_weight_changes_the_fingerprint(tiny_model: MultiExitModel, part: str) -> None:
    before = fingerprint(tiny_model)
    weight = list(getattr(tiny_model, part).parameters())[-1].data
    weight[-1] = torch.nextafter(weight[-1], torch.tensor(torch.inf))
    assert fingerprint(tiny_model) != before


def test_another_precision_has_another_fingerprint(tiny_model: MultiExitModel) -> None:
    before = fingerprint(tiny_model)
    assert fingerprint(tiny_model.to(torch.bfloat16)) != before
