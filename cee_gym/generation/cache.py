"""A key-value cache whose rows and columns are set before each layer call.

Layers stay untouched: they call `update` as they do with any cache. Rows that have left are not
among those it hands back, and what a layer would write for a token that did not run it is had by
calling the layer with a cache that notes keys and values and raises.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.models.llama.modeling_llama import rotate_half

from cee_gym.backbones.layers import LayerCall
from cee_gym.errors import BackboneError

KeysValues = tuple[torch.Tensor, torch.Tensor]


class _Captured(Exception):
    """Keys and values are noted: the rest of the layer need not run."""


class _SlotLayer(CacheLayerMixin):
    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def room(of: torch.Tensor) -> torch.Tensor:
            _, heads, _, width = of.shape
            return of.new_zeros(self._cache.size, heads, self._cache.columns, width)

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        cache = self._cache
        if cache.capturing:
            cache.captured = key_states, value_states
            raise _Captured
        self.write(key_states, value_states, cache.rows, cache.places)
        return self.read(cache.rows, cache.end)

    def write(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor | None,
        places: "int | torch.Tensor",
    ) -> None:
        """Writes keys and values `[n, heads, q, D]`."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        for room, given in ((self.keys, keys), (self.values, values)):
            assert room is not None
            if isinstance(places, torch.Tensor):
                index = torch.arange(len(room), device=room.device) if rows is None else rows
                room.transpose(1, 2)[index[:, None], places] = given.transpose(1, 2)
            else:
                window = room.narrow(2, places, given.shape[2])
                if rows is None:
                    window.copy_(given)
                else:
                    window.index_copy_(0, rows, given)

    def read(self, rows: torch.Tensor | None, end: int) -> KeysValues:
        """Keys and values of some rows, all columns before `end`."""
        assert self.keys is not None
        assert self.values is not None
        keys, values = self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)
        if rows is None:
            return keys, values
        return keys.index_select(0, rows), values.index_select(0, rows)

    def get_seq_length(self) -> int:
        return self._cache.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.start + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """Keys and values `[B, heads, columns, D]` of each layer.

    Args:
        num_layers: of the backbone.
        size: B.
        columns: tokens of the longest row, prompt and padding among them.

    Attributes:
        start: columns before the tokens that are being run.
        rows: int64 `[n]`, the rows that are being run; None for all, in order.
        places: the first column they are written to; or int64 `[n, q]`, one for each token.
        end: the columns that are attended to end before it.
    """

    def __init__(self, num_layers: int, size: int, columns: int) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])
        self.size, self.columns = size, columns
        self.start, self.end = 0, 0
        self.rows: torch.Tensor | None = None
        self.places: int | torch.Tensor = 0
        self.capturing = False
        self.captured: KeysValues | None = None

    def at(self, start: int, length: int, rows: torch.Tensor | None) -> None:
        """The next calls are of `length` tokens of these rows, in the columns from `start`."""
        self.start, self.places, self.end, self.rows = start, start, start + length, rows


def rows_of(rows: torch.Tensor, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What takes some rows, int64 `[n]`, of each tensor that layers are given.

    Args:
        rows: of the batch.
        size: of the batch.

    Raises:
        BackboneError: when called, if a tensor has neither one row nor as many as the batch.
    """
    done: dict[int, torch.Tensor] = {}

    def take(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[0] != size:
            if tensor.shape[0] != 1:
                raise BackboneError(
                    f"the layers of this backbone are given a tensor {list(tensor.shape)} in a "
                    f"batch of {size}, from which rows that have left cannot be taken"
                )
            return tensor
        if id(tensor) not in done:  # most layers are given the same tensors
            done[id(tensor)] = tensor.index_select(0, rows)
        return done[id(tensor)]

    return take


def without_mask(call: LayerCall) -> LayerCall:
    """The call without what has four dimensions: keys and values do not depend on it."""

    def walk(value: Any) -> Any:
        return None if isinstance(value, torch.Tensor) and value.ndim == 4 else value

    kwargs = {name: walk(value) for name, value in call.kwargs.items()}
    return replace(call, args=tuple(map(walk, call.args)), kwargs=kwargs)


class Projection:
    """What a layer would write into the cache for some states, without running the layer.

    The general way calls the layer with a cache that notes keys and values and raises, so norm,
    biases and rotation are the layer's own. Where they turn out to be no more than `k_proj` and
    `v_proj` of the normed state and the rotation, these are called alone, which takes a third of
    the time.

    Args:
        cache: of the backbone.
    """

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache
        self._plain: dict[torch.nn.Module, bool] = {}

    def __call__(self, call: LayerCall, states: torch.Tensor) -> KeysValues:
        """Keys and values `[n, heads, q, D]`.

        Args:
            call: of the layer, for these rows and positions.
            states: `[n, q, H]`, what it would be given.
        """
        known = self._plain.get(call.layer)
        if known:
            return _project(call, states)
        keys, values = self._capture(call, states)
        if known is None:
            self._plain[call.layer] = _is_plain(call, states, keys, values)
        return keys, values

    def _capture(self, call: LayerCall, states: torch.Tensor) -> KeysValues:
        cache = self._cache
        cache.capturing = True
        try:
            without_mask(call)(states)
        except _Captured:
            pass
        finally:
            cache.capturing = False
        assert cache.captured is not None
        found, cache.captured = cache.captured, None
        return found


def _project(call: LayerCall, states: torch.Tensor) -> KeysValues:
    attention: Any = call.layer.self_attn
    normed = call.layer.input_layernorm(states)  # type: ignore[operator]
    shape = (*states.shape[:2], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape).transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    cos, sin = call.kwargs["position_embeddings"]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return keys * cos + rotate_half(keys) * sin, values


def _is_plain(
    call: LayerCall, states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> bool:
    try:
        found = _project(call, states)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    same = found[0].shape == keys.shape and found[1].shape == values.shape
    return (
        same
        and torch.allclose(found[0], keys, rtol=1e-5, atol=1e-6)
        and torch.allclose(found[1], values, rtol=1e-5, atol=1e-6)
    )
