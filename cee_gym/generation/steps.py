"""One decoding step: the next token of some rows, each only as deep as the policy lets it.

`CopySteps` shows deeper layers the state that a token left with. `RecomputeSteps` runs a token on
when a later one goes deeper, so that nobody ever sees less than the full model would.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from cee_gym.backbones.layers import LayerCall, mapped
from cee_gym.exits.forced import planned_calls
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.cache import Projection, SlotCache, rows_of
from cee_gym.generation.decisions import Decisions, Path


@dataclass
class Work:
    """What decoding took, counted in tokens.

    Attributes:
        layers: layers run, one for each token and layer, without the prompt.
        heads: LM heads computed, one for each token and exit.
        fills: keys and values of layers that were not run, one for each token and layer.
    """

    layers: int = 0
    heads: int = 0
    fills: int = 0


class Step(NamedTuple):
    """What one step gives for n rows.

    Attributes:
        logits: float32 `[n, C]`, at the exit.
        exits: int64 `[n]`, the number of the exit, from 1.
    """

    logits: torch.Tensor
    exits: torch.Tensor


class Steps:
    """Decoding, step by step.

    Args:
        decoder: with exits, in eval mode.
        decisions: of its policy.
        attention_mask: int64 `[B, T]`, of the prompts; 0 where they are padded, on the left.
        columns: the most tokens of a row, prompt and padding among them.
        min_prefill: tokens at places before this one, counted from 0 without padding, run at full
            depth.
    """

    def __init__(
        self,
        decoder: MultiExitDecoder,
        decisions: Decisions,
        attention_mask: torch.Tensor,
        columns: int,
        min_prefill: int = 0,
    ) -> None:
        size, prompt = attention_mask.shape
        self.decoder, self.decisions = decoder, decisions
        self.num_backbone_layers = decoder.depths[-1]
        self.size, self.min_prefill = size, min_prefill
        self.work = Work()
        self.cache = SlotCache(self.num_backbone_layers, size, columns)
        ones = attention_mask.new_ones(size, columns - prompt)
        self.mask = torch.cat([attention_mask, ones], dim=1)
        self.padded = bool((attention_mask == 0).any())
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def prefill(self, input_ids: torch.Tensor) -> None:
        """Runs the prompts but for their last tokens, int64 `[B, T - 1]`, at full depth."""
        length = input_ids.shape[1]
        if length:
            hidden, calls = self.begin(input_ids, 0, None)
            for call in calls:
                hidden = call(hidden)

    def begin(
        self, ids: torch.Tensor, column: int, rows: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[LayerCall]]:
        """Embeds tokens `[n, q]` of some rows, which are to stand from this column on."""
        end = column + ids.shape[1]
        self.cache.at(column, ids.shape[1], rows)
        mask, positions = self.mask[:, :end], self.positions[:, column:end]
        if rows is not None:
            mask, positions = mask[rows], positions[rows]
        return self.decoder.begin(
            input_ids=ids,
            attention_mask=mask if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
        )

    def __call__(self, ids: torch.Tensor, rows: torch.Tensor | None, column: int) -> Step:
        """Runs the newest token of some rows.

        Args:
            ids: int64 `[n]`, the tokens.
            rows: int64 `[n]`, where they stand in the batch; None for all rows.
            column: where they stand in their rows.
        """
        raise NotImplementedError

    def _leaving(self, exit: int, path: Path, positions: torch.Tensor) -> list[bool] | None:
        """Who leaves; nobody whose place, int64 `[n]`, is before `min_prefill`."""
        leaving = self.decisions.leave(exit, path)
        if leaving is None or not self.min_prefill:
            return leaving
        free = (positions >= self.min_prefill).tolist()
        return [leaves and may for leaves, may in zip(leaving, free, strict=True)]


class _Answers:
    """Collects where n tokens left and with what; computes their logits with one LM head."""

    def __init__(self, decoder: MultiExitDecoder, size: int) -> None:
        self._decoder = decoder
        self._ready: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._adapted: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.exits = torch.full((size,), decoder.num_layers, device=decoder.device)

    def leave(
        self,
        places: torch.Tensor,
        exit: int,
        states: torch.Tensor,
        logits: torch.Tensor | None,
    ) -> None:
        """Some tokens, at these places `[m]` of the n, leave with these states `[m, H]`.

        Args:
            places: of those that leave.
            exit: the number of the exit.
            states: theirs.
            logits: what the exit answers, `[m, C]`, where that is known already.
        """
        self.exits[places] = exit
        if logits is not None:
            self._ready.append((places, logits))
            return
        last = exit == self._decoder.num_layers
        adapted = states if last else self._decoder.adapters[exit - 1](states)
        self._adapted.append((places, adapted))

    def logits(self, work: Work) -> torch.Tensor:
        """float32 `[n, C]`."""
        found = self._ready
        if self._adapted:
            places = torch.cat([places for places, _ in self._adapted])
            work.heads += len(places)
            states = torch.cat([adapted for _, adapted in self._adapted])
            found = [*found, (places, self._decoder.read(states).float())]
        if len(found) == 1 and len(found[0][0]) == 1:
            return found[0][1]
        out = found[0][1].new_empty(len(self.exits), found[0][1].shape[1])
        for places, logits in found:
            out[places] = logits
        return out


class CopySteps(Steps):
    """Deeper layers see the state that a token left with, through their own norm and projections.

    With one row keys and values are made when a later token reaches the layer, of all tokens that
    lack them there at once; with more, at the end of the step.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.project = Projection(self.cache)
        # For each layer, the tokens that have no keys and values there yet: column, state, call.
        self._pending: list[list[tuple[int, torch.Tensor, LayerCall]]] = [
            [] for _ in range(self.num_backbone_layers)
        ]

    def __call__(self, ids: torch.Tensor, rows: torch.Tensor | None, column: int) -> Step:
        """See `Steps`."""
        decoder, size = self.decoder, len(ids)
        hidden, calls = self.begin(ids[:, None], column, rows)
        positions = self.positions[:, column] if rows is None else self.positions[rows, column]
        here = torch.arange(size, device=ids.device)
        given = here if rows is None else rows
        answers = _Answers(decoder, size)
        path = Path(decoder, self.decisions.remembers)
        left_with = hidden.new_empty(size, hidden.shape[2])
        depth_left = torch.full((size,), self.num_backbone_layers, device=ids.device)
        exit, narrowed = 0, None
        for depth in range(1, self.num_backbone_layers + 1):
            if self._pending[depth - 1]:
                self._fill_pending(depth)
            call = calls[depth - 1]
            if narrowed is not None:
                call = mapped(call, narrowed)
            hidden = call(hidden)
            self.work.layers += len(here)
            if depth != decoder.depths[exit]:
                continue
            exit += 1
            if exit == decoder.num_layers:
                answers.leave(here, exit, hidden[:, 0], None)
                break
            path.show(hidden[:, 0])
            leaving = self._leaving(exit, path, positions[here])
            if leaving is None or not any(leaving):
                continue
            if all(leaving):
                every = torch.arange(len(here), device=ids.device)
                answers.leave(here, exit, hidden[:, 0], path.known_logits(every))
                left_with[here], depth_left[here] = hidden[:, 0], depth
                break
            gone = torch.tensor(leaving, device=ids.device)
            out, stay = gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]
            theirs = here[out]
            left_with[theirs], depth_left[theirs] = hidden[out, 0], depth
            answers.leave(theirs, exit, hidden[out, 0], path.known_logits(out))
            path.keep(stay)
            hidden = hidden[stay]
            here = here[stay]
            narrowed = rows_of(here, size)
            self.cache.rows = given[here]
        self.work.heads += path.heads
        logits = answers.logits(self.work)
        if self.size == 1:
            for layer in range(int(depth_left[0]), self.num_backbone_layers):
                self._pending[layer].append((column, left_with, calls[layer]))
        else:
            self._fill(left_with, depth_left, calls, given, column)
        return Step(logits, answers.exits)

    def _fill_pending(self, depth: int) -> None:
        pending = self._pending[depth - 1]
        states = torch.cat([state for _, state, _ in pending])[None]
        call = _joined([call for _, _, call in pending])
        keys, values = self.project(call, states)
        first = pending[0][0]  # their columns follow one another
        self.cache.layers[depth - 1].write(keys, values, None, first)  # type: ignore[union-attr]
        self.work.fills += len(pending)
        pending.clear()

    def _fill(
        self,
        left_with: torch.Tensor,
        depth_left: torch.Tensor,
        calls: list[LayerCall],
        rows: torch.Tensor,
        column: int,
    ) -> None:
        order = depth_left.argsort()
        depths, states, rows = depth_left[order].tolist(), left_with[order][:, None], rows[order]
        count, call_rows, part = 0, None, states
        for depth in range(depths[0] + 1, self.num_backbone_layers + 1):
            before = count
            while count < len(depths) and depths[count] < depth:
                count += 1
            if count != before:
                call_rows, part = rows_of(order[:count], len(depths)), states[:count]
            assert call_rows is not None
            keys, values = self.project(mapped(calls[depth - 1], call_rows), part)
            layer = self.cache.layers[depth - 1]
            layer.write(keys, values, rows[:count], column)  # type: ignore[union-attr]
            self.work.fills += count


class RecomputeSteps(Steps):
    """Tokens that have left run on when a later token of their row goes deeper."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        columns = self.cache.columns
        ids = torch.zeros_like(self.mask)
        self.cache.at(0, columns, None)
        embedded, self._calls = planned_calls(
            self.decoder,
            ids,
            attention_mask=self.mask,
            position_ids=torch.cat([self.positions, self.positions[:, -1:]], dim=1),
            past_key_values=self.cache,
        )
        self._states = torch.zeros_like(embedded)
        # How many layers each token has run; -1 where there is none yet.
        self._reached = torch.full_like(self.mask, -1)

    def prefill(self, input_ids: torch.Tensor) -> None:
        """See `Steps`."""
        super().prefill(input_ids)
        self._reached[:, : input_ids.shape[1]] = self.num_backbone_layers

    def __call__(self, ids: torch.Tensor, rows: torch.Tensor | None, column: int) -> Step:
        """See `Steps`."""
        decoder, size = self.decoder, len(ids)
        given = torch.arange(size, device=ids.device) if rows is None else rows
        embedded, _ = self.begin(ids[:, None], column, rows)
        self._states[given, column] = embedded[:, 0]
        self._reached[given, column] = 0
        here = torch.arange(size, device=ids.device)
        answers = _Answers(decoder, size)
        path = Path(decoder, self.decisions.remembers)
        for exit in range(1, decoder.num_layers + 1):
            self._run(exit, given[here], column)
            states = self._states[given[here], column]
            if exit == decoder.num_layers:
                answers.leave(here, exit, states, None)
                break
            path.show(states)
            leaving = self._leaving(exit, path, self.positions[given[here], column])
            if leaving is None or not any(leaving):
                continue
            gone = torch.tensor(leaving, device=ids.device)
            out, stay = gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]
            answers.leave(here[out], exit, states[out], path.known_logits(out))
            path.keep(stay)
            here = here[stay]
            if not len(here):
                break
        self.work.heads += path.heads
        return Step(answers.logits(self.work), answers.exits)

    def finish(self, columns: range) -> torch.Tensor:
        """Runs all tokens of the only row on to full depth; the logits `[q, C]` of some columns."""
        only = torch.zeros(1, dtype=torch.long, device=self.mask.device)
        for exit in range(1, self.decoder.num_layers + 1):
            self._run(exit, only, columns.stop - 1)
        self.work.heads += len(columns)
        return self.decoder.read(self._states[0, columns.start : columns.stop]).float()

    def forget(self, column: int) -> None:
        """Takes back all tokens from this column on."""
        self._reached[:, column:] = -1

    def _run(self, exit: int, rows: torch.Tensor, column: int) -> None:
        """Runs, from the exit before to this one, all tokens of some rows that stand there."""
        depths = (0, *self.decoder.depths)
        first, last = depths[exit - 1], depths[exit]
        stands = self._reached[rows, : column + 1] == first
        most = int(stands.sum(1).max())
        if not most:
            return
        # Rows with fewer repeat the newest token, which writes the same keys and values again.
        places = stands.long().argsort(dim=1, descending=True, stable=True)[:, :most]
        places = torch.where(stands.gather(1, places), places, column)
        at = rows[:, None], places
        block = self._states[at]
        self.cache.rows, self.cache.places, self.cache.end = rows, places, column + 1
        for call in self._block_calls(first, last, rows, places, column + 1):
            block = call(block)
        self._states[at] = block
        self._reached[at] = last
        self.work.layers += int(stands.sum()) * (last - first)

    def _block_calls(
        self, first: int, last: int, rows: torch.Tensor, places: torch.Tensor, end: int
    ) -> list[LayerCall]:
        done: dict[int, torch.Tensor] = {}

        def take(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in done:
                own = rows[:, None] if tensor.shape[0] > 1 else torch.zeros_like(rows)[:, None]
                if tensor.ndim == 4:
                    done[id(tensor)] = tensor[own, 0, places][:, None, :, :end]
                else:
                    done[id(tensor)] = tensor[own, places]
            return done[id(tensor)]

        return [mapped(call, take) for call in self._calls[first:last]]


def _joined(calls: list[LayerCall]) -> LayerCall:
    """The calls of one layer for tokens in a row, as one call; without masks."""
    if len(calls) == 1:
        return calls[0]

    def join(values: tuple[object, ...]) -> object:
        first = values[0]
        if isinstance(first, torch.Tensor):
            if first.ndim == 4:
                return None
            return torch.cat([value for value in values if isinstance(value, torch.Tensor)], dim=1)
        if isinstance(first, tuple):
            return tuple(map(join, zip(*values, strict=True)))
        return first

    kwargs = {name: join(tuple(call.kwargs[name] for call in calls)) for name in calls[0].kwargs}
    args = tuple(map(join, zip(*(call.args for call in calls), strict=True)))
    return LayerCall(calls[0].layer, args, kwargs, calls[0].family)
