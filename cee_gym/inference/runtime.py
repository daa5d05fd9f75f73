"""Runs batches of texts through the layers, each text only as far as the exit policy lets it.

The layers are the backbone's own, called one after another. After a layer where some texts leave,
their rows are taken out of the batch and of whatever the layers are given beside it (masks,
positions), and so are the last columns, where only longer texts that have left had tokens. What
becomes of a text therefore does not depend on the others in its batch, up to the rounding of sums
that are added up in another order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.agents.at_alpha import lacks_a_speed
from cee_gym.agents.base import Agent, check_layout, check_model
from cee_gym.backbones.layers import LayerCall
from cee_gym.backbones.rows import narrow
from cee_gym.errors import CeeGymError, check_number
from cee_gym.exits.reader import EarlyExitModel
from cee_gym.observation import layout_of


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

    Any number of threads may call one runtime. Agent and model are to stay as they are while it is
    in use; the model is put into eval mode, and stays on its device.

    Args:
        model: runs the layers.
        agent: decides where to leave. One that learned at every price of a layer has to be held at
            one, by `agent.at` or `agent.for_budget`.
        threshold: a text leaves at the first layer with a score above it.

    Raises:
        CeeGymError: if the agent has not learned, learned from other observations than the model's
            or on other weights, or observes alpha and is not held; or if the threshold is below 0.
        BackboneError: if texts cannot be taken out of what the layers are given.
    """

    def __init__(self, model: EarlyExitModel, agent: Agent, *, threshold: float = 0.5) -> None:
        check_number("threshold", min(threshold, 1.0), 0)
        if not hasattr(agent, "layout"):
            raise CeeGymError(f"this {agent.name} agent has seen no environment: call learn first")
        layout = layout_of(agent.observe, model.num_layers, model.width, model.num_labels)
        check_layout(agent, layout)
        if agent.model is not None:
            check_model(agent, model.fingerprint)
        if lacks_a_speed(agent):
            raise CeeGymError(
                f"this {agent.name} agent has a speed for every alpha: hold it at one by "
                "agent.at(alpha=...) or agent.for_budget(saved_layers=...)"
            )
        self.model = model.eval()
        self._device = model.device
        # Looked up once: next to a layer of a small model that runs for one text, it would show.
        self._exits = model.exits
        self._decider = agent.decider(threshold, self._device)
        self._has_memory = agent.has_memory
        self._asked = frozenset(agent.exit_layers(model.num_layers, threshold))
        before = range(1, max(self._asked, default=1)) if agent.has_memory else ()
        self._read = self._asked | {*before, model.num_layers}
        self._refuse_unless_rows_can_leave()

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
        return Batch(0, np.arange(len(lengths)), lengths, hidden, calls, weights, [])

    def run_until_some_leave(self, batch: "Batch") -> "Left":
        """Runs a batch on, and takes out of it what leaves; to be called in inference mode."""
        num_layers, calls = self.model.num_layers, batch.calls
        for layer in range(batch.layer + 1, num_layers + 1):
            batch.hidden = calls[layer - 1](batch.hidden)
            if layer not in self._read:
                continue
            state, logits = self._exits[layer - 1](batch.hidden, batch.weights)
            if layer == num_layers:
                break
            observations = self._observe(state, logits, layer)
            if self._has_memory:
                batch.path.append(observations)
            if layer not in self._asked:
                continue
            if self._has_memory:
                observations = torch.stack(batch.path, dim=1)
            # The one place where the host waits for the device.
            leave = self._decider.leave(observations, layer)
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

    def _observe(self, state: torch.Tensor, logits: torch.Tensor, layer: int) -> torch.Tensor:
        parts, alpha = self._decider.parts, self._decider.alpha
        return observe(parts, state, logits, layer, self.model.num_layers, alpha)

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
        path: the observations so far, `[n, D]` each, if the agent has a memory.
    """

    layer: int
    rows: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    hidden: torch.Tensor
    calls: list[LayerCall]
    weights: torch.Tensor | None
    path: list[torch.Tensor]

    def narrow(self, stay: list[int], on_device: torch.Tensor) -> None:
        """Takes out all but some, which are given on the host and on the device."""
        self.rows, self.lengths = self.rows[stay], self.lengths[stay]
        longest, done = int(self.lengths.max()), self.layer
        self.hidden, self.calls[done:] = narrow(self.hidden, self.calls[done:], on_device, longest)
        if self.weights is not None:
            self.weights = self.weights.index_select(0, on_device)[:, :longest]
        self.path = [observations.index_select(0, on_device) for observations in self.path]


def observe(
    parts: Sequence[str],
    state: torch.Tensor,
    logits: torch.Tensor,
    layer: int,
    num_layers: int,
    alpha: float,
) -> torch.Tensor:
    """What `cee_gym.observation.write` writes of one layer, float32 `[n, D]`, on the device.

    Args:
        parts: of the observation, in order.
        state: `[n, H]`.
        logits: `[n, C]`.
        layer: from 1.
        num_layers: L.
        alpha: the price of one layer.
    """
    columns = []
    logits = logits.float()
    for part in parts:
        if part == "hidden":
            column = state.float()
        elif part == "layer":
            column = logits.new_zeros(len(logits), num_layers)
            column[:, layer - 1] = 1
        elif part == "probs":
            column = torch.softmax(logits, dim=1)
        elif part == "entropy":
            log_p = torch.log_softmax(logits, dim=1)
            entropy = -(log_p.exp() * log_p).sum(dim=1, keepdim=True)
            column = (entropy / math.log(max(logits.shape[1], 2))).clamp(0, 1)
        elif part == "confidence":
            column = torch.softmax(logits, dim=1).amax(dim=1, keepdim=True)
        else:
            column = logits.new_full((len(logits), 1), alpha)
        columns.append(column)
    return torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]


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
    if len(mask) == 1 and mask.size and 0 not in mask[0].tolist():  # for one text, numpy is felt
        return np.array([mask.shape[1]])
    if mask.size and mask.all():
        return np.full(mask.shape[0], mask.shape[1])
    if mask.size == 0 or not mask[:, 0].all() or (mask[:, 1:] > mask[:, :-1]).any():
        raise CeeGymError(
            "each text must have a token, and padding on the right only: set the tokenizer's "
            "padding_side to 'right'"
        )
    return mask.sum(axis=1)
