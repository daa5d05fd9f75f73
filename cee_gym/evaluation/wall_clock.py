"""What a policy takes on real text, by the clock."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.backbones.encoding import EncodedText
from cee_gym.exits.classifier import MultiExitModel
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.measuring import clock, median_times
from cee_gym.policies.base import ExitPolicy

MOST_TEXTS = 64


def full_depth(model: MultiExitModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The predictions of the whole backbone and its last exit, int64 `[B]` on the CPU."""
    with torch.inference_mode():
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        hidden = model.backbone(**inputs).last_hidden_state
        _, logits = model.exit(hidden, model.num_layers, inputs["attention_mask"])
        return logits.argmax(dim=1).cpu()


def seconds_a_text(
    model: MultiExitModel,
    policy: ExitPolicy,
    text: EncodedText,
    seconds: float,
    *,
    batch_size: int = 1,
) -> tuple[float, float]:
    """Measures full depth and a policy on the same texts, in turns.

    Each figure is the median over passes over some texts of the split, at most 64 of them, drawn in
    the same way every time. Tokenising is not in it.

    Args:
        model: on its device; is put into eval mode.
        policy: at one speed.
        text: to draw from.
        seconds: about how long it may take; there are 5 passes of each at least.
        batch_size: texts a batch.

    Returns:
        Seconds a text of the backbone as transformers runs it, with its last exit alone, and of the
        policy.
    """
    rows = np.random.default_rng(0).permutation(len(text))[:MOST_TEXTS]
    batches = [text.batch(batch, model.device) for batch in text.batches(rows, batch_size)]
    now = clock(model.device)

    def one_pass(run: Callable[[dict[str, torch.Tensor]], Any]) -> npt.NDArray[np.float64]:
        begun = now()
        for batch in batches:
            run(batch)
        return np.array([now() - begun])

    sides = (partial(full_depth, model), EarlyExitRuntime(model, policy))
    medians = median_times([partial(one_pass, side) for side in sides], seconds, False)
    full, early = (medians[:, 0] / len(rows)).tolist()
    return full, early
