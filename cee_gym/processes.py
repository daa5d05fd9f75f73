"""Several processes of one run, as `accelerate launch` and `torchrun` start them.

All run the same program. The main one alone writes and speaks, and says what there is to do; work
on text is shared out, and gradients are added up. They meet where one of these functions is called,
which all have to call in the same order.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from cee_gym.errors import CeeGymError

if TYPE_CHECKING:
    import torch

    from cee_gym.backbones.encoding import Rows

Given = TypeVar("Given")
Found = TypeVar("Found")

# The others wait for as long as a policy phase takes. Where a process dies the launcher ends all.
LONGEST_WAIT = timedelta(days=365)
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return index() == 0


def let_the_main_speak() -> None:
    """Waits, before an error is printed, whether the main process has ended with the same one.

    Then the launcher ends this process before it has said anything, and the user reads it once.
    """
    if not is_main():
        time.sleep(5)


def connect() -> None:
    """Meets the other processes for the first time; every function here that needs it does so.

    Raises:
        CeeGymError: if the launcher is told to split the model among the processes.
    """
    if count() == 1:
        return
    if asked := [name for name in SHARDED if os.environ.get(name, "").lower() in ("1", "true")]:
        raise CeeGymError(
            f"{asked[0]} splits a model among processes, and here each process holds all of it: "
            "launch with --multi_gpu, or with torchrun"
        )
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)


def agree(value: Found) -> Found:
    """What the main process gives, for all: what is on the disk is the same for none otherwise."""
    if count() == 1:
        return value
    connect()
    from torch import distributed

    found = [value]
    distributed.broadcast_object_list(found, src=0)
    return found[0]


def once(work: Callable[[], Found]) -> Found:
    """Does work in the main process, while the others wait; all get what it gives."""
    return agree(work() if is_main() else None)  # type: ignore[return-value]


def share(batch: "Rows") -> tuple["Rows", bool]:
    """The rows of a batch that this process takes, and whether they count.

    Where there are fewer rows than processes, those without any take the first, so that what they
    compute has gradients as well; it does not count.
    """
    own = batch[index() :: count()]
    return (own, True) if len(own) else (batch[:1], False)


def total(values: "torch.Tensor") -> "torch.Tensor":
    """The sum over all processes of a tensor of the same shape in each."""
    if count() == 1:
        return values
    connect()
    from accelerate import PartialState
    from torch import distributed

    summed = values.detach().to(PartialState().device, copy=True)
    distributed.all_reduce(summed)
    return summed.to(values.device)


def sum_gradients(parameters: Mapping[str, "torch.nn.Parameter"], weight: float) -> None:
    """Puts the weighted sum of the gradients of all processes in the place of each one's own.

    A parameter has a gradient afterwards if it has one in any process.

    Args:
        parameters: the same in all processes.
        weight: of this process. All weights have the sum 1.
    """
    if count() == 1:
        return
    import torch

    own = list(parameters.values())
    there = total(torch.tensor([float(p.grad is not None) for p in own])).tolist()
    used = [parameter for parameter, known in zip(own, there, strict=True) if known]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in used if parameter.grad is not None]
    summed = total(torch.cat([gradient.reshape(-1) * weight for gradient in gradients]))
    parts = summed.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def spread(
    parts: Sequence[Given], compute: Callable[[Given], Found]
) -> Iterator[tuple[Given, Found]]:
    """Computes each part in one of the processes.

    The main process is given all parts with what was found, in their order; the others compute
    while they iterate, and are given nothing.

    Args:
        parts: the same in all processes.
        compute: gives what can be pickled.
    """
    if count() == 1:
        for part in parts:
            yield part, compute(part)
        return
    connect()
    from torch import distributed

    for start in range(0, len(parts), count()):
        turn = parts[start : start + count()]
        found = compute(turn[index()]) if index() < len(turn) else None
        gathered: list[Found] | None = [None] * count() if is_main() else None  # type: ignore[list-item]
        distributed.gather_object(found, gathered, dst=0)
        if gathered is not None:
            yield from zip(turn, gathered, strict=False)
