"""Records `EarlyExit-TinyLLaMA-Stories`, which comes with the package.

Stories were sampled from stories260K at temperature 1 and are cut at 96 tokens. Exits are its own
norm and head behind adapters that were trained on other stories.

    python -m benchmarks.record_stories WORK
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cee_gym.tasks.prompted import get_prompted
from cee_gym.traces.recordings import shipped_backbone
from cee_gym.training import token_phases
from cee_gym.training.config import RecordConfig, TokenConfig
from cee_gym.training.token_setup import Shares, TokenSetup

ID = "EarlyExit-TinyLLaMA-Stories"
POLICY, CALIBRATION, DEV = 32, 12, 20


def main() -> None:
    """Trains the adapters on all stories of their share, and records some of the others."""
    torch.set_num_threads(1)
    backbone, work = shipped_backbone(ID), Path(sys.argv[1])
    assert backbone is not None
    config = RecordConfig(max_tokens=96)
    setup = TokenSetup.load(get_prompted("stories"), str(backbone), None, config, TokenConfig())
    token_phases.warm_up(setup, work / "models")
    few = replace(setup, splits={**setup.splits, "dev": setup.splits["dev"][:DEV]})
    fit, policy, calibration = setup.shares
    vars(few)["shares"] = Shares(fit, policy[:POLICY], calibration[:CALIBRATION])
    vars(few)["tokenizer"] = setup.tokenizer
    token_phases.record(few, work / "models", work / "recording")
    for part in (work / "recording").iterdir():
        target = backbone.parent / part.name
        if part.suffix == ".safetensors":  # the texts, which nobody needs to learn from the traces
            continue
        if part.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    shutil.rmtree(backbone.parent / "models", ignore_errors=True)
    shutil.copytree(work / "models", backbone.parent / "models")
    print(np.load(backbone.parent / "dev" / "labels.npy").shape)


if __name__ == "__main__":
    main()
