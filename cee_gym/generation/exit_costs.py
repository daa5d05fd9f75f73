"""What leaving at each exit of a decoder takes, LM heads included, in layers."""

import time
from collections.abc import Sequence
from statistics import median

import torch

from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.decisions import Path, observe_exit
from cee_gym.observation import Sizes

_TURNS = 9


def reads_head(decoder: MultiExitDecoder, observe: Sequence[str]) -> bool:
    """Whether these parts of an observation are made of what an exit answers.

    Args:
        decoder: with exits.
        observe: names of parts.
    """
    path = Path(decoder)
    with torch.inference_mode():
        for _ in decoder.depths:
            path.show(torch.zeros(1, decoder.width, device=decoder.device))
        sizes = Sizes(decoder.num_layers, decoder.width, decoder.num_labels)
        observe_exit(observe, sizes, decoder.num_layers, 0.0, path, whole_path=True)
    return path.heads > 0


def exit_costs(decoder: MultiExitDecoder, observe: Sequence[str]) -> list[float]:
    """What leaving at each exit costs, for the `cost` of a `Reward`, `[L]`.

    A token that leaves at exit t has run the layers up to it and one LM head; a policy that reads
    what exits answer has had the heads of all exits up to it. Measured on this machine, one row.

    Args:
        decoder: in eval mode.
        observe: the parts of an observation that the policy reads.

    Returns:
        Rising numbers in units of one layer.
    """
    ids = torch.zeros(1, 1, dtype=torch.long, device=decoder.device)
    layers, heads = [], []
    with torch.inference_mode():
        for _ in range(_TURNS):
            hidden, calls = decoder.begin(input_ids=ids)
            start = time.perf_counter()
            for call in calls:
                hidden = call(hidden)
            layers.append((time.perf_counter() - start) / len(calls))
            start = time.perf_counter()
            decoder.answer(hidden[:, 0], 1)
            heads.append(time.perf_counter() - start)
    head = median(heads) / median(layers)
    looks = reads_head(decoder, observe)
    return [
        depth + head * (number if looks else 1)
        for number, depth in enumerate(decoder.depths, start=1)
    ]
