"""Measures what each part of a multi-exit model takes here, and predicts what a policy would gain.

The parts are measured where they stand, in whole runs of the runtime with the clock read in
between: a layer alone in a loop would find its weights in the cache.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.backbones.rows import narrow
from cee_gym.cost import BATCH_SIZES, LENGTHS, CostModel
from cee_gym.errors import CeeGymError, check_number
from cee_gym.exits.classifier import MultiExitModel
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.observation import Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence
from cee_gym.policies.score import Decider
from cee_gym.progress import show_progress
from cee_gym.traces.texts import LIBRARIES

LEAST_REPEATS, MOST_REPEATS = 5, 50
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Seconds of all batches, without and with early exit."""

    full_depth: float
    early_exit: float

    @property
    def wall_clock_speedup(self) -> float:
        """How many times faster early exit is."""
        return self.full_depth / self.early_exit


def profile(
    model: MultiExitModel,
    policy: ExitPolicy | None = None,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    lengths: Sequence[int] | None = None,
    seconds: float = 60.0,
    progress_bar: bool = False,
) -> CostModel:
    """Measures a model on the device it is on; each figure is a median.

    The runs of all sizes are mixed evenly, so that whatever else the machine does hits all alike.
    One of each goes before, to warm up.

    Args:
        model: put into eval mode.
        policy: whose decisions to measure; at layers where it does not look, heads are not run.
        batch_sizes: at least two.
        lengths: in tokens, at least two; by default 8 to 128, as far as the model goes.
        seconds: about how long it may take; every size is run 5 times at least and 50 at most.
        progress_bar: show progress and time left.

    Raises:
        CeeGymError: if a size is out of range, or the policy does not fit the model.
    """
    longest = int(model.config.max_tokens)
    batch_sizes, lengths = checked_sizes(batch_sizes, lengths, LENGTHS, longest)
    check_number("seconds", seconds, 0)
    watch = _Watch(model, policy)
    rng = np.random.default_rng(0)
    batches = [_made_up(model, size, length, rng) for size in batch_sizes for length in lengths]
    with watch.hooks():
        medians = median_times(
            [partial(watch.run, batch) for batch in batches], seconds, progress_bar
        )
    grid = medians.T.reshape(-1, len(batch_sizes), len(lengths))
    layers, heads, decisions = np.split(grid[1:], 3)
    return CostModel(
        batch_sizes=tuple(batch_sizes),
        lengths=tuple(lengths),
        embedding=grid[0],
        layers=layers,
        heads=heads,
        policy=decisions,
        model=fingerprint(model),
        machine=machine_of(model.device, model.dtype),
        typical=(batch_sizes[0], lengths[len(lengths) // 2]),
    )


def checked_sizes(
    batch_sizes: Sequence[int],
    lengths: Sequence[int] | None,
    usual_lengths: Sequence[int],
    longest: float,
) -> tuple[list[int], list[int]]:
    """Batch sizes and lengths to measure, rising.

    Args:
        batch_sizes: that were asked for.
        lengths: that were asked for; None for the usual ones, as far as the model goes.
        usual_lengths: rising.
        longest: that the model can take.

    Raises:
        CeeGymError: if one is out of range, or there are fewer than two.
    """
    if lengths is None:
        most = int(min(longest, usual_lengths[-1]))
        lengths = [*(length for length in usual_lengths if length < longest), most]
    batch_sizes, lengths = sorted(set(batch_sizes)), sorted(set(lengths))
    for name, given in (("batch_sizes", batch_sizes), ("lengths", lengths)):
        if len(given) < 2 or given[0] < 1:
            raise CeeGymError(f"{name} must be at least two numbers from 1 up, got {given}")
    check_number("lengths", lengths[-1], 1, longest)
    return batch_sizes, lengths


def median_times(
    runs: Sequence[Callable[[], Floats]], seconds: float, progress_bar: bool
) -> Floats:
    """Runs each of some things many times, all in turns.

    Args:
        runs: each gives the seconds of its K parts.
        seconds: about how long all of it may take.
        progress_bar: show progress and time left.

    Returns:
        float64 `[runs, K]`, the medians.
    """
    times: list[list[Floats]] = [[] for _ in runs]
    warm_up = np.array([run().sum() for run in runs])
    share = seconds / len(runs) / warm_up
    repeats = share.clip(LEAST_REPEATS, MOST_REPEATS).astype(int)
    # The runs of each size stand at even distances.
    turns = np.concatenate([(np.arange(count) + 0.5) / count for count in repeats])
    order = np.repeat(np.arange(len(runs)), repeats)[np.argsort(turns, kind="stable")]
    for size in show_progress(order, desc="profile", unit="run", disable=not progress_bar):
        times[size].append(runs[size]())
    return np.array([np.median(of_one, axis=0) for of_one in times])


def predict(
    costs: CostModel,
    exit_layers: npt.NDArray[np.integer],
    lengths: npt.NDArray[np.integer],
    batch_size: int,
) -> Prediction:
    """What `EarlyExitRuntime` would take for some texts, and what running all layers would.

    Batches are of like length, the longest first. A layer, its head and the decision run on the
    texts that have not left, padded to the longest of them. Full depth is the same batches through
    all layers and the last head. Making the batches is not counted.

    Args:
        costs: measured with the policy; else its decisions are taken to cost nothing.
        exit_layers: integers `[N]`, from 1.
        lengths: integers `[N]`, in tokens.
        batch_size: rows of a batch; the last may be smaller.

    Raises:
        CeeGymError: if there are no texts, or exit layers are out of range.
    """
    num_layers = costs.num_layers
    if exit_layers.shape != lengths.shape or lengths.ndim != 1 or not len(lengths):
        raise CeeGymError(
            f"exit layers and lengths must be one number per text each, got {exit_layers.shape} "
            f"and {lengths.shape}"
        )
    if exit_layers.min() < 1 or exit_layers.max() > num_layers:
        raise CeeGymError(f"exit layers must be 1 to {num_layers}, the layers of the profile")
    check_number("batch_size", batch_size, 1)
    order = np.argsort(-lengths, kind="stable")
    # [batches, rows]; the last batch is filled up with texts that leave before layer 1.
    exits, tokens = (
        np.pad(values[order], (0, -len(order) % batch_size)).reshape(-1, batch_size)
        for values in (exit_layers, lengths)
    )
    layers = np.arange(1, num_layers + 1)
    running = exits[:, None, :] >= layers[:, None]  # [batches, L, rows]
    rows, longest = running.sum(axis=2), (running * tokens[:, None, :]).max(axis=2)
    whole = costs.seconds(
        np.stack([costs.embedding, costs.layers.sum(axis=0), costs.heads[-1]]),
        rows[:, 0],
        longest[:, 0],
    ).sum(axis=1)
    each = costs.seconds(costs.layers + costs.heads + costs.policy, rows, longest)
    steps = np.einsum("lbl->", each)  # each layer's parts with the texts that are running there
    return Prediction(full_depth=float(whole.sum()), early_exit=float(whole[0] + steps))


class _Watch:
    """Runs `EarlyExitRuntime` and reads the clock at every layer and decision.

    The policy decides, but nobody leaves; what taking rows out costs is measured beside it, on
    every other row.
    """

    def __init__(self, model: MultiExitModel, policy: ExitPolicy | None) -> None:
        self._model = model
        self._has_policy = policy is not None
        self._clock = clock(model.device)
        self._times: list[float] = []
        self._decided: dict[int, float] = {}
        self._runtime = EarlyExitRuntime(model, policy or _asked_everywhere(model))
        self._runtime.decider = self._watched(self._runtime.decider)

    def _watched(self, decider: Decider) -> Decider:
        def scores(observations: torch.Tensor, layer: int) -> torch.Tensor:
            self._decided[layer] = self._clock()
            return torch.zeros_like(decider.scores(observations, layer).cpu())

        return replace(decider, scores=scores, least=0.0)

    def _note(self, *_: Any) -> None:
        self._times.append(self._clock())

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Keeps hooks on the layers."""
        tokens = torch.ones((1, 1), dtype=torch.long, device=self._model.device)
        calls = self._model.begin({"input_ids": tokens, "attention_mask": tokens})[1]
        handles = []
        for layer in {call.layer for call in calls}:
            handles += [layer.register_forward_pre_hook(self._note)]
            handles += [layer.register_forward_hook(self._note)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, inputs: dict[str, torch.Tensor]) -> Floats:
        """Seconds of the embedding, each layer, each head and each decision, `[1 + 3 L]`."""
        self._times.clear()
        self._decided.clear()
        self._note()
        self._runtime(inputs)
        self._note()
        start, *at_layers, end = self._times
        begun, ran = np.reshape(at_layers, (-1, 2)).T
        next_begun = np.append(begun[1:], end)
        decided = next_begun.copy()
        asked = np.array(list(self._decided), dtype=np.int64) - 1
        decided[asked] = list(self._decided.values())
        policy = next_begun - decided
        policy[asked] += self._leaving(inputs)
        if not self._has_policy:
            policy[:] = 0.0
        return np.concatenate([[begun[0] - start], ran - begun, decided - ran, policy])

    def _leaving(self, inputs: dict[str, torch.Tensor]) -> float:
        rows, length = inputs["input_ids"].shape
        if rows == 1:
            return 0.0
        with torch.inference_mode():
            hidden, calls = self._model.begin(inputs)
            stay = torch.arange(0, rows, 2, device=hidden.device)
            start = self._clock()
            narrow(hidden, calls, stay, length)
            return self._clock() - start


def _asked_everywhere(model: MultiExitModel) -> ExitPolicy:
    """One whose decisions take next to nothing."""
    sizes = Sizes(model.num_layers, model.width, model.num_labels)
    return ExitPolicy(Confidence(), layout_of(("confidence",), sizes))


def clock(device: torch.device) -> Callable[[], float]:
    """What reads the seconds.

    On one thread it is the time the thread was running: on a machine that does other things too,
    others' turns would fall into long parts and not into short ones, and medians of the two would
    not compare.
    """
    if device.type != "cpu":

        def after_the_device() -> float:
            torch.accelerator.synchronize(device)
            return time.perf_counter()

        return after_the_device
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _made_up(
    model: MultiExitModel, rows: int, length: int, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Random tokens `[rows, length]`, the first row one shorter where there are others.

    A batch without padding would not need its mask, which is seldom so.
    """
    vocabulary = int(model.backbone.config.vocab_size)
    tokens = rng.integers(min(5, vocabulary - 1), vocabulary, size=(rows, length))
    mask = np.ones_like(tokens)
    mask[0, length - 1 :] = rows == 1 or length == 1
    return {
        name: torch.from_numpy(values).to(model.device)
        for name, values in (("input_ids", tokens), ("attention_mask", mask))
    }


def machine_of(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a profile says about where it was made."""
    names = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cee-gym", *LIBRARIES)},
        },
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
