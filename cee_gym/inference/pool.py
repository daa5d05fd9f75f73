"""Batches that early exit has thinned out wait for each other, so that late layers run full.

What is left of a batch after some layers is often a few texts, which take longer each than many do.
Here they wait at that depth until those of other batches have joined them.
"""

import time
from dataclasses import dataclass, field
from threading import Event, Lock

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from cee_gym.errors import CeeGymError, check_number
from cee_gym.inference.runtime import Batch, EarlyExitRuntime, Exits, Left, in_order, lengths_of

Inputs = dict[str, torch.Tensor]


class Pool:
    """A runtime whose callers' texts run together; several threads are to call it.

    What runs next is, of the texts waiting at one depth,

    1. those among which one has been in the pool for too long,
    2. or else those at the greatest depth where enough have gathered,
    3. or else the most.

    So texts wait only while others run.

    Args:
        runtime: runs the layers.
        batch_size: how many texts are enough. A batch goes on by itself while it has at least half
            as many.
        max_wait_ms: after how long in the pool a text goes before all that have been there for
            less, in milliseconds.

    Raises:
        CeeGymError: if a number is out of range.
    """

    def __init__(
        self, runtime: EarlyExitRuntime, *, batch_size: int = 32, max_wait_ms: float = 1000.0
    ) -> None:
        check_number("batch_size", batch_size, 1)
        check_number("max_wait_ms", max_wait_ms, 0)
        self.runtime = runtime
        self._batch_size = batch_size
        self._max_wait = max_wait_ms / 1000
        # By the layers that have been run, from 0.
        self._waiting: list[list[_Group]] = [[] for _ in range(runtime.model.num_layers)]
        self._names: set[str] = set()
        # Those that are not answered yet. The first of them runs what is next, for all.
        self._calls: list[_Call] = []
        self._lock = Lock()

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> Exits:
        """See `EarlyExitRuntime.__call__`.

        What fails while texts of several calls run together fails for each of these calls.

        Raises:
            CeeGymError: also if another call gave tensors of other names.
        """
        call = _Call(len(lengths_of(inputs["attention_mask"].cpu().numpy())))
        owners = np.full(call.size, call, dtype=object)
        with self._lock:
            if not self._calls:
                self._names = set(inputs)
            if self._names != set(inputs):
                raise CeeGymError(
                    f"this batch has {', '.join(sorted(inputs))}, others in the pool have "
                    f"{', '.join(sorted(self._names))}: take one tokenizer for all"
                )
            self._waiting[0].append(_Group(inputs, owners, np.arange(call.size)))
            self._calls.append(call)
            alone = len(self._calls) == 1
        try:
            if not alone:
                call.wake.wait()
            while not call.done:
                self._run()
        finally:
            self._leave(call)
        if call.error is not None:
            raise call.error
        return in_order(call.exits)

    def _leave(self, call: "_Call") -> None:
        """Has another caller run what is next, if this one did; drops what nobody waits for."""
        with self._lock:
            was_running = call is self._calls[0]
            self._calls.remove(call)
            if call.missing:
                for depth, groups in enumerate(self._waiting):
                    self._waiting[depth] = [g for g in groups if g.wanted_by(self._calls)]
            if was_running and self._calls:
                self._calls[0].wake.set()

    def _next(self) -> list["_Group"]:
        """Takes out what runs next, all from one depth; there is something."""
        depths = [depth for depth, groups in enumerate(self._waiting) if groups]
        since = {depth: min(group.since for group in self._waiting[depth]) for depth in depths}
        sizes = {depth: sum(group.size for group in self._waiting[depth]) for depth in depths}
        depth = min(depths, key=since.__getitem__)
        if time.monotonic() < since[depth] + self._max_wait:
            enough = [depth for depth in depths if sizes[depth] >= self._batch_size]
            depth = max(enough or depths, key=lambda d: d if enough else sizes[d])
        groups: list[_Group] = []
        waiting = sorted(self._waiting[depth], key=lambda group: group.since)
        while waiting and sum(group.size for group in groups) < self._batch_size:
            groups.append(waiting.pop(0))
        self._waiting[depth] = waiting
        return groups

    def _run(self) -> None:
        """Runs what is next on until too few are left."""
        with self._lock:
            groups = self._next()
        try:
            group = _joined(groups, self.runtime) if len(groups) > 1 else groups[0]
            groups = [group]
            if group.batch is None:
                group.batch = self.runtime.start(group.inputs)
            while group.size:
                group.hand_out(self.runtime.run_until_some_leave(group.batch))
                if 0 < 2 * group.size < self._batch_size:
                    with self._lock:
                        self._waiting[group.batch.layer].append(group)
                    break
        except BaseException as error:
            for call in {call for group in groups for call in group.owners[group.rows]}:
                call.error = error
                call.wake.set()
            if not isinstance(error, Exception):
                raise


@dataclass(eq=False)
class _Call:
    """One batch of a caller: how many texts, and what has left of them.

    Attributes:
        size: how many texts.
        exits: what has left of them.
        error: what came up instead.
        wake: set when it is done, or is to run what is next.
    """

    size: int
    exits: list[Left] = field(default_factory=list)
    error: BaseException | None = None
    wake: Event = field(default_factory=Event)

    @property
    def missing(self) -> int:
        """How many texts have not left."""
        return self.size - sum(len(rows) for _, rows, _ in self.exits)

    @property
    def done(self) -> bool:
        return self.error is not None or not self.missing


@dataclass(eq=False)
class _Group:
    """Texts that are at one depth.

    Attributes:
        inputs: of the N texts that it started with, `[N, T]`.
        owners: object `[N]`, the calls they are from.
        places: int64 `[N]`, their rows there.
        since: when the first of them came.
        batch: runs them; None before the first layer.
    """

    inputs: Inputs
    owners: npt.NDArray[np.object_]
    places: npt.NDArray[np.int64]
    since: float = field(default_factory=time.monotonic)
    batch: Batch | None = None

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Which of the N have not left."""
        return np.arange(len(self.places)) if self.batch is None else self.batch.rows

    @property
    def size(self) -> int:
        return len(self.rows)

    def wanted_by(self, calls: list[_Call]) -> bool:
        """Whether any of these waits for one of the texts."""
        return any(call in calls for call in self.owners[self.rows])

    def hand_out(self, left: Left) -> None:
        """Gives texts that have left to the calls they are from."""
        layer, rows, logits = left
        owners, places = self.owners[rows], self.places[rows]
        for call in set(owners):
            own = np.flatnonzero(owners == call)
            on_device = torch.from_numpy(own).to(logits.device, non_blocking=True)
            call.exits.append((layer, places[own], logits.index_select(0, on_device)))
            if call.done:
                call.wake.set()


def _joined(groups: list[_Group], runtime: EarlyExitRuntime) -> _Group:
    """One group of several at the same depth."""
    given = [
        {name: tensor[torch.from_numpy(group.rows)] for name, tensor in group.inputs.items()}
        for group in groups
    ]
    longest = max(int(part["attention_mask"].sum(dim=1).max()) for part in given)
    joined = _Group(
        {name: _cat([part[name] for part in given], longest) for name in given[0]},
        np.concatenate([group.owners[group.rows] for group in groups]),
        np.concatenate([group.places[group.rows] for group in groups]),
        min(group.since for group in groups),
    )
    batches = [group.batch for group in groups if group.batch is not None]
    if batches:
        # Embeds the texts once more. It takes little, and makes the masks, which differ by family.
        joined.batch = runtime.start(joined.inputs)
        joined.batch.layer = batches[0].layer
        joined.batch.hidden = _cat([batch.hidden for batch in batches], longest)
        paths = zip(*(batch.path for batch in batches), strict=True)
        joined.batch.path = [torch.cat(step) for step in paths]
    return joined


def _cat(parts: list[torch.Tensor], length: int) -> torch.Tensor:
    """One tensor `[n, length, ...]` of several `[., T, ...]`, zeros being added at the end."""
    return torch.cat(
        [
            pad(part[:, :length], (*(0, 0) * (part.ndim - 2), 0, max(0, length - part.shape[1])))
            for part in parts
        ]
    )
