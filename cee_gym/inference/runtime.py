"""Runs batches of texts through the layers, each text only as far as the exit policy lets it.

The layers are the backbone's own, called one after another. After a layer where some texts leave,
their rows are taken out of the batch and of whatever the layers are given beside it (masks,
positions), and so are the last columns, where only longer texts that have left had tokens. What
becomes of a text therefore does not depend on the others in its batch, up to the rounding of sums
that are added up in another order.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from array_api_compat import torch as xp
from torch.nn.attention import SDPBackend, sdpa_kernel

from cee_gym.backbones.layers import LayerCall
from cee_gym.backbones.rows import narrow
from cee_gym.errors import CeeGymError
from cee_gym.exits.reader import EarlyExitModel
from cee_gym.observation import Seen, Sizes, layout_of, needs_path, observe_last
from cee_gym.policies.base import ExitPolicy


@dataclass(frozen=True, eq=False)
class Exits:
    """Where B texts left, and with what.

    Attributes:
        prediction: int64 `[B]`, the class.
        logits: float32 `[B, C]`, of the classes, at the exit.
        exit_layer: int64 `[B]`, from 1.
    """

    prediction: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    exit_layer: npt.NDArray[np.int64]


class EarlyExitRuntime:
    """A model and an exit policy.

    Heads and policy run at the layers where the policy can leave (and before them, if it has a
    memory), and at the last. On a GPU the host waits for it once at each of those layers where the
    policy is asked, and once at the end; and transformers looks into the mask before the first
    layer.

    Any number of threads may call one runtime. The model is to stay as it is while it is in use; it
    is put into eval mode, and stays on its device.

    Args:
        model: runs the layers.
        policy: decides where to leave. One that was learned for every price of a layer has to be
            held at one, by `policy.at` or `policy.for_budget`.

    Raises:
        CeeGymError: if the policy reads other observations than the model's, was learned on other
            weights, or was learned for every price and is not held; or if it leaves, or looks,
            where the model has no exit.
        BackboneError: if texts cannot be taken out of what the layers are given.
    """

    def __init__(self, model: EarlyExitModel, policy: ExitPolicy) -> None:
        sizes = Sizes(model.num_layers, model.width, model.num_labels)
        weights = None if policy.model is None else model.fingerprint
        policy.check_fits(layout_of(policy.observe, sizes), weights)
        self._take(model.eval(), policy)
        self._refuse_unless_rows_can_leave()

    def _take(self, model: EarlyExitModel, policy: ExitPolicy) -> None:
        """Looks up once what every batch needs: next to a small layer it would show."""
        policy.check_has_a_speed()
        self.model, self.policy = model, policy
        self._sizes = Sizes(model.num_layers, model.width, model.num_labels)
        self._device = model.device
        self._exits = model.exits
        self.decider = policy.decider(self._device)
        num_layers = model.num_layers
        self._has_memory = policy.score.has_memory
        self._needs_path = needs_path(self.decider.parts)
        self._asked = frozenset(policy.score.exit_layers(num_layers, policy.threshold))
        remembers = self._has_memory or self._needs_path
        before = range(1, max(self._asked, default=1)) if remembers else ()
        self._read = self._asked | {*before, num_layers}
        if missing := sorted(self._read.difference(model.exit_layers)):
            raise CeeGymError(
                f"this {policy.name} policy needs exits at layers {missing}, but the model has "
                f"them at {list(model.exit_layers)} only: export it with those"
            )

    def at(self, policy: ExitPolicy) -> Self:
        """The same model under this policy at another speed, without checking again that they fit.

        Raises:
            CeeGymError: if the policy is of another kind of observations or weights.
        """
        if (policy.layout, policy.model) != (self.policy.layout, self.policy.model):
            raise CeeGymError("this is another policy: make a runtime of its own for it")
        twin = object.__new__(type(self))
        twin._take(self.model, policy)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # The rest is looked up again. Whether the two fit is not checked again: weights may have
        # been cast since.
        return {"model": self.model, "policy": self.policy}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._take(**state)

    def _refuse_unless_rows_can_leave(self) -> None:
        mask = torch.tensor([[1, 1], [1, 0]], device=self._device)
        with torch.inference_mode():
            hidden, calls = self.model.begin({"input_ids": mask, "attention_mask": mask})
            narrow(hidden, calls, torch.tensor([1], device=self._device), 1)

    def __call__(self, inputs: dict[str, torch.Tensor]) -> Exits:
        """Runs a batch.

        Args:
            inputs: what the tokenizer gives, int64 `[B, T]`: `input_ids`, `attention_mask` and what
                else the backbone takes, padded on the right. On the CPU, to save a transfer.

        Raises:
            CeeGymError: if a text is empty or not padded on the right.
        """
        with torch.inference_mode():
            batch = self.start(inputs)
            exits = []
            while len(batch.rows):
                exits.append(self.run_until_some_leave(batch))
            return in_order(exits)

    def start(self, inputs: dict[str, torch.Tensor]) -> "Batch":
        """All that comes before the first layer; to be called in inference mode.

        Raises:
            CeeGymError: if a text is empty or not padded on the right.
        """
        if self.model.training:
            self.model.eval()
        given = inputs["attention_mask"]
        lengths = lengths_of(given.cpu().numpy())
        if (longest := int(lengths.max())) < given.shape[1]:
            inputs = {name: tensor[:, :longest] for name, tensor in inputs.items()}
        if self._device != given.device:
            inputs = {
                name: tensor.to(self._device, non_blocking=True) for name, tensor in inputs.items()
            }
        hidden, calls = self.model.begin(inputs)
        weights = self._exits[0].weights(inputs["attention_mask"], hidden.dtype)
        return Batch(0, np.arange(len(lengths)), lengths, hidden, calls, weights, [], [])

    def run_until_some_leave(self, batch: "Batch") -> "Left":
        """Runs a batch on, and takes out of it what leaves; to be called in inference mode."""
        with self._attention():
            return self._run_until_some_leave(batch)

    def _attention(self) -> AbstractContextManager[None]:
        """Keeps cuDNN's attention away: it makes a plan for every new number of rows, in 100 ms."""
        if self._device.type != "cuda":
            return nullcontext()
        kinds = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
        return sdpa_kernel(list(kinds))

    def _run_until_some_leave(self, batch: "Batch") -> "Left":
        num_layers, calls = self.model.num_layers, batch.calls
        for layer in range(batch.layer + 1, num_layers + 1):
            batch.hidden = calls[layer - 1](batch.hidden)
            if layer not in self._read:
                continue
            state, logits = self._exits[layer - 1](batch.hidden, batch.weights)
            if layer == num_layers:
                break
            if self._needs_path:
                batch.answers.append((state, logits))
            observations = self._observe(state, logits, layer, batch.answers)
            if self._has_memory:
                batch.path.append(observations)
            if layer not in self._asked:
                continue
            if self._has_memory:
                observations = torch.stack(batch.path, dim=1)
            # The one place where the host waits for the device.
            leave = self.decider.leave(observations, layer)
            if all(leave):
                break
            if any(leave):
                left = [place for place, leaves in enumerate(leave) if leaves]
                stay = [place for place, leaves in enumerate(leave) if not leaves]
                rows = batch.rows[left]
                batch.layer = layer
                batch.narrow(stay, self._on_device(stay))
                return layer, rows, logits.index_select(0, self._on_device(left))
        rows, batch.rows = batch.rows, batch.rows[:0]
        return layer, rows, logits

    def _observe(
        self,
        state: torch.Tensor,
        logits: torch.Tensor,
        layer: int,
        answers: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        first = layer
        states, all_logits = state.unsqueeze(1), logits.unsqueeze(1)
        if self._needs_path:
            first = 1
            states, all_logits = (torch.stack(path, dim=1) for path in zip(*answers, strict=True))
        seen = Seen(
            xp,
            self._sizes,
            (first, layer),
            self.decider.alpha,
            states.float(),
            all_logits.float(),
        )
        return observe_last(self.decider.parts, seen)

    def _on_device(self, places: list[int]) -> torch.Tensor:
        return torch.tensor(places).to(self._device, non_blocking=True)


# The layer where some texts left, their rows `[n]`, and their class logits `[n, C]`.
Left = tuple[int, npt.NDArray[np.int64], torch.Tensor]


@dataclass(eq=False)
class Batch:
    """Texts on their way through the layers.

    Attributes:
        layer: the last that was run.
        rows: int64 `[n]`, which of the texts that it started with have not left.
        lengths: int64 `[n]`, in tokens.
        hidden: `[n, T, H]`, T being the greatest length.
        calls: L, one per layer.
        weights: `[n, T]`, how much each token counts, where the exits need it.
        path: the observations so far, `[n, D]` each, if the policy has a memory.
        answers: the states `[n, H]` and logits `[n, C]` so far, if a part of the observation reads
            all of them.
    """

    layer: int
    rows: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    hidden: torch.Tensor
    calls: list[LayerCall]
    weights: torch.Tensor | None
    path: list[torch.Tensor]
    answers: list[tuple[torch.Tensor, torch.Tensor]]

    def narrow(self, stay: list[int], on_device: torch.Tensor) -> None:
        """Takes out all but some, which are given on the host and on the device."""
        self.rows, self.lengths = self.rows[stay], self.lengths[stay]
        longest, done = int(self.lengths.max()), self.layer
        self.hidden, self.calls[done:] = narrow(self.hidden, self.calls[done:], on_device, longest)
        if self.weights is not None:
            self.weights = self.weights.index_select(0, on_device)[:, :longest]
        self.path = [observations.index_select(0, on_device) for observations in self.path]
        self.answers = [
            (state.index_select(0, on_device), logits.index_select(0, on_device))
            for state, logits in self.answers
        ]


def in_order(exits: list[Left]) -> Exits:
    """Puts together all that left a batch."""
    if len(exits) == 1:
        layer, rows, last = exits[0]
        logits = last.float().cpu().numpy()
        return Exits(logits.argmax(axis=1), logits, np.array([layer] * len(rows)))
    logits_as_left = torch.cat([logits for _, _, logits in exits]).float().cpu().numpy()
    rows = np.concatenate([rows for _, rows, _ in exits])
    logits, exit_layer = np.empty_like(logits_as_left), np.empty_like(rows)
    logits[rows] = logits_as_left
    exit_layer[rows] = np.repeat([layer for layer, _, _ in exits], [len(r) for _, r, _ in exits])
    return Exits(logits.argmax(axis=1), logits, exit_layer)


def lengths_of(mask: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """How many tokens each text has, int64 `[B]`, given its attention mask `[B, T]`.

    Raises:
        CeeGymError: if one has none, or there is padding before or between its tokens.
    """
    # For one text numpy's overhead shows.
    if len(mask) == 1 and mask.size and 0 not in mask[0].tolist():
        return np.array([mask.shape[1]])
    if mask.size and mask.all():
        return np.full(mask.shape[0], mask.shape[1])
    if mask.size == 0 or not mask[:, 0].all() or (mask[:, 1:] > mask[:, :-1]).any():
        raise CeeGymError(
            "each text must have a token, and padding on the right only: set the tokenizer's "
            "padding_side to 'right'"
        )
    return mask.sum(axis=1)
