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
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.agents.at_alpha import AtAlpha
from cee_gym.agents.base import Agent, check_layout, check_model
from cee_gym.collect import fingerprint
from cee_gym.envs.observation import layout_of
from cee_gym.errors import CeeGymError, check_number
from cee_gym.models.layers import narrow
from cee_gym.models.multi_exit import MultiExitModel

if TYPE_CHECKING:
    from cee_gym.inference.onnx_runtime import OnnxModel


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

    def __init__(
        self, model: "MultiExitModel | OnnxModel", agent: Agent, *, threshold: float = 0.5
    ) -> None:
        check_number("threshold", min(threshold, 1.0), 0)
        if not hasattr(agent, "layout"):
            raise CeeGymError(f"this {agent.name} agent has seen no environment: call learn first")
        layout = layout_of(agent.observe, model.num_layers, model.width, model.num_labels)
        check_layout(agent, layout)
        if agent.model is not None:
            weights = fingerprint(model) if isinstance(model, MultiExitModel) else model.fingerprint
            check_model(agent, weights)
        low, high = agent.alpha_range
        if "alpha" in layout and low < high and not isinstance(agent, AtAlpha):
            raise CeeGymError(
                f"this {agent.name} agent has a speed for every alpha: hold it at one by "
                "agent.at(alpha=...) or agent.for_budget(saved_layers=...)"
            )
        self.model = model.eval()
        self._device = model.device
        self._exits = (
            [_Exit(model, layer) for layer in range(1, model.num_layers + 1)]
            if isinstance(model, MultiExitModel)
            else model.exits
        )
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
        if self.model.training:
            self.model.eval()
        with torch.inference_mode():
            return self._run(inputs)

    def _run(self, inputs: dict[str, torch.Tensor]) -> Exits:
        given, num_layers = inputs["attention_mask"], self.model.num_layers
        lengths = _lengths(given.cpu().numpy())
        if (longest := int(lengths.max())) < given.shape[1]:
            inputs = {name: tensor[:, :longest] for name, tensor in inputs.items()}
        if self._device != given.device:
            inputs = {
                name: tensor.to(self._device, non_blocking=True) for name, tensor in inputs.items()
            }
        hidden, calls = self.model.begin(inputs)
        weights = self._exits[0].weights(inputs["attention_mask"], hidden.dtype)
        rows = np.arange(len(lengths))  # of the texts that have not left
        path: list[torch.Tensor] = []
        exits: list[tuple[int, npt.NDArray[np.int64], torch.Tensor]] = []
        for layer in range(1, num_layers + 1):
            hidden = calls[layer - 1](hidden)
            if layer not in self._read:
                continue
            state, logits = self._exits[layer - 1](hidden, weights)
            if layer == num_layers:
                exits.append((layer, rows, logits))
                break
            observations = self._observe(state, logits, layer)
            if self._has_memory:
                path.append(observations)
            if layer not in self._asked:
                continue
            if self._has_memory:
                observations = torch.stack(path, dim=1)
            # The one place where the host waits for the device.
            margins = self._decider.margins(observations, layer).tolist()
            left = [place for place, margin in enumerate(margins) if margin > 0]
            if not left:
                continue
            if len(left) == len(rows):
                exits.append((layer, rows, logits))
                break
            stay = [place for place, margin in enumerate(margins) if not margin > 0]
            exits.append((layer, rows[left], logits.index_select(0, self._on_device(left))))
            rows, lengths = rows[stay], lengths[stay]
            longest, kept = int(lengths.max()), self._on_device(stay)
            hidden, calls[layer:] = narrow(hidden, calls[layer:], kept, longest)
            if weights is not None:
                weights = weights.index_select(0, kept)[:, :, :longest]
            path = [observations.index_select(0, kept) for observations in path]
        return _in_order(exits)

    def _observe(self, state: torch.Tensor, logits: torch.Tensor, layer: int) -> torch.Tensor:
        parts, alpha = self._decider.parts, self._decider.alpha
        return observe(parts, state, logits, layer, self.model.num_layers, alpha)

    def _on_device(self, places: list[int]) -> torch.Tensor:
        return torch.tensor(places).to(self._device, non_blocking=True)


class _Exit:
    """`MultiExitModel.exit` of one layer in eval mode, with all it takes looked up beforehand.

    Next to a layer of a small model that runs for one text, the looking up is felt.
    """

    def __init__(self, model: MultiExitModel, layer: int) -> None:
        self._first_only = model.config.pooling == "first"
        self._norm = getattr(model.backbone, "final_norm", None)
        self._pooler = model.poolers[(layer - 1) % len(model.poolers)]
        self._head = model.heads[layer - 1]

    def weights(self, attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """How much each token of `[B, T]` counts, `[B, 1, T]`; None where only the first does."""
        if self._first_only:
            return None
        size, length = attention_mask.shape
        if size == 1:  # without padding
            return attention_mask.new_full((1, 1, length), 1 / length, dtype=dtype)
        weights = attention_mask[:, None].to(dtype)
        return weights / weights.sum(dim=2, keepdim=True)

    def __call__(
        self, hidden: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._first_only:
            hidden = hidden[:, 0]
        if self._norm is not None:
            hidden = self._norm(hidden)
        if weights is not None:
            hidden = torch.bmm(weights, hidden)[:, 0]
        state = self._pooler(hidden).tanh()
        return state, self._head(state)


def observe(
    parts: Sequence[str],
    state: torch.Tensor,
    logits: torch.Tensor,
    layer: int,
    num_layers: int,
    alpha: float,
) -> torch.Tensor:
    """What `cee_gym.envs.observation.write` writes of one layer, float32 `[n, D]`, on the device.

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


def _in_order(exits: list[tuple[int, npt.NDArray[np.int64], torch.Tensor]]) -> Exits:
    """Puts together what left: layer, places in the batch `[n]`, and logits `[n, C]`."""
    if len(exits) == 1:
        layer, rows, last = exits[0]
        logits = last.float().cpu().numpy()
        return Exits(logits.argmax(axis=1), logits, np.full(len(rows), layer))
    logits_as_left = torch.cat([logits for _, _, logits in exits]).float().cpu().numpy()
    rows = np.concatenate([rows for _, rows, _ in exits])
    logits, exit_layer = np.empty_like(logits_as_left), np.empty_like(rows)
    logits[rows] = logits_as_left
    exit_layer[rows] = np.repeat([layer for layer, _, _ in exits], [len(r) for _, r, _ in exits])
    return Exits(logits.argmax(axis=1), logits, exit_layer)


def _lengths(mask: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """How many tokens each text has, int64 `[B]`, given its attention mask `[B, T]`.

    Raises:
        CeeGymError: if one has none, or there is padding before or between its tokens.
    """
    if mask.size and mask.all():
        return np.full(mask.shape[0], mask.shape[1])
    if mask.size == 0 or not mask[:, 0].all() or (mask[:, 1:] > mask[:, :-1]).any():
        raise CeeGymError(
            "each text must have a token, and padding on the right only: set the tokenizer's "
            "padding_side to 'right'"
        )
    return mask.sum(axis=1)
