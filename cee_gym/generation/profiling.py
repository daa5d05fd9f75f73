"""Measures what a decoding step of a decoder takes here, part by part, LM heads included."""

from collections.abc import Callable, Sequence
from math import inf

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.agents.presets import OBSERVE_TOKENS
from cee_gym.cost import CostModel
from cee_gym.errors import check_number
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.decisions import Decisions, Path, observe_exit
from cee_gym.generation.steps import CopySteps
from cee_gym.generation.text_generation import never
from cee_gym.measuring import checked_sizes, clock, machine_of, median_times
from cee_gym.observation import Sizes, layout_of, needs_path
from cee_gym.policies.base import ExitPolicy

BATCH_SIZES = (1, 4, 16)
LENGTHS = (32, 128)
Floats = npt.NDArray[np.float64]


def profile_decoder(
    decoder: MultiExitDecoder,
    policy: ExitPolicy | None = None,
    *,
    observe: Sequence[str] = OBSERVE_TOKENS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    lengths: Sequence[int] | None = None,
    seconds: float = 60.0,
    progress_bar: bool = False,
) -> CostModel:
    """Measures decoding steps, whose cost for each exit can be the `cost` of a `Reward`.

    L counts exits; a layer of the result is all layers of the backbone since the exit before. Every
    token pays one LM head, wherever it leaves. A policy that reads what exits answer pays one at
    each exit that a token has come to instead. Keys and values of the layers that a token skips
    are priced as if they were always made, and one token at a time.

    In the result, `embedding` is what every token pays: its embedding, its LM head if the policy
    reads none, and the keys and values of all layers, which `layers` then are without.

    Args:
        decoder: in eval mode, on the device to measure.
        policy: whose decisions to measure.
        observe: without a policy, the parts of an observation that one yet to be learned reads.
        batch_sizes: rows decoded together, at least two numbers.
        lengths: tokens that a row has already, at least two numbers; by default 32 and 128, as far
            as the model goes.
        seconds: about how long it may take; every size is run 5 times at least and 50 at most.
        progress_bar: show progress and time left.

    Raises:
        CeeGymError: if a size is out of range, or the policy does not fit the decoder.
    """
    longest = inf if decoder.context is None else decoder.context - 1
    batch_sizes, lengths = checked_sizes(batch_sizes, lengths, LENGTHS, longest)
    check_number("seconds", seconds, 0)
    look = _look(decoder, policy, observe)
    runs = [_step(decoder, look, rows, length) for rows in batch_sizes for length in lengths]
    with torch.inference_mode():
        medians = median_times(runs, seconds, progress_bar)
    grid = medians.T.reshape(-1, len(batch_sizes), len(lengths))
    count = decoder.num_layers
    start, head = grid[0], grid[1]
    layers, looks, fills = np.split(grid[2:], [count, 2 * count])
    heads, decisions = np.zeros_like(looks), looks
    if reads_head(decoder, observe if policy is None else policy.observe):
        heads, decisions = looks, heads
        heads[-1] = head
    else:
        start = start + head
    return CostModel(
        batch_sizes=tuple(batch_sizes),
        lengths=tuple(lengths),
        embedding=start + fills.sum(axis=0),
        layers=(layers - fills).clip(min=0.0),
        heads=heads,
        policy=decisions,
        model=decoder.fingerprint,
        machine=machine_of(decoder.device, next(decoder.parameters()).dtype),
        typical=(batch_sizes[0], lengths[len(lengths) // 2]),
        depths=decoder.depths,
    )


def reads_head(decoder: MultiExitDecoder, observe: Sequence[str]) -> bool:
    """Whether these parts of an observation are made of what an exit answers.

    Args:
        decoder: with exits.
        observe: names of parts.
    """
    path = Path(decoder)
    look = _look(decoder, None, observe)
    with torch.inference_mode():
        for exit in range(1, decoder.num_layers + 1):
            path.show(torch.zeros(1, decoder.width, device=decoder.device))
            look(exit, path)
    return path.heads > 0


def _look(
    decoder: MultiExitDecoder, policy: ExitPolicy | None, observe: Sequence[str]
) -> Callable[[int, Path], object]:
    """What is done at an exit that tokens have come to."""
    if policy is not None:
        return Decisions(decoder, policy).leave
    sizes = Sizes(decoder.num_layers, decoder.width, decoder.num_labels)
    layout_of(tuple(observe), sizes)  # refuses a part that is not known
    whole_path = needs_path(observe)

    def look(exit: int, path: Path) -> torch.Tensor:
        return observe_exit(observe, sizes, exit, 0.0, path, whole_path=whole_path)

    return look


def _step(
    decoder: MultiExitDecoder, look: Callable[[int, Path], object], rows: int, length: int
) -> Callable[[], Floats]:
    """What runs one decoding step through all layers, after `length` tokens of each row.

    It gives the seconds of the embedding, the last LM head, and at each exit of the layers since
    the exit before, of looking, and of the keys and values of these layers alone, `[2 + 3 L]`.
    """
    now = clock(decoder.device)
    ids = torch.randint(
        decoder.num_labels,
        (rows, length + 1),
        generator=torch.Generator().manual_seed(0),
    ).to(decoder.device)
    steps = CopySteps(decoder, Decisions(decoder, never(decoder)), torch.ones_like(ids), length + 1)
    with torch.inference_mode():
        steps.prefill(ids)
    exit_at = {depth: number for number, depth in enumerate(decoder.depths, start=1)}

    def run() -> Floats:
        times = np.zeros((3, decoder.num_layers))
        path = Path(decoder)
        begun = now()
        hidden, calls = steps.begin(ids[:, -1:], length, None)
        started = last = now()
        states = hidden
        for depth, call in enumerate(calls, start=1):
            hidden = call(hidden)
            if depth not in exit_at:
                continue
            exit = exit_at[depth]
            ran = now()
            if exit < decoder.num_layers:
                path.show(hidden[:, 0])
                look(exit, path)
            times[0, exit - 1], times[1, exit - 1] = ran - last, now() - ran
            last = now()
        decoder.answer(hidden[:, 0], decoder.num_layers)
        read = now()
        exit = 1
        for depth, call in enumerate(calls, start=1):
            before = now()
            steps.project(call, states)
            times[2, exit - 1] += now() - before
            exit += depth == decoder.depths[exit - 1]
        return np.concatenate([[started - begun, read - last], times.ravel()])

    return run
