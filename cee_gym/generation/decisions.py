"""Asks an exit policy about tokens, and computes an LM head only where what it reads needs one."""

from collections.abc import Sequence
from functools import cached_property

import torch
from array_api_compat import torch as xp

from cee_gym.exits.forced import Leave
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.observation import Seen, Sizes, layout_of, needs_path, observe_last
from cee_gym.policies.base import ExitPolicy


class _SeenToken(Seen):
    """Computes logits when a part of an observation reads them, not before."""

    def __init__(
        self, sizes: Sizes, layers: tuple[int, int], alpha: float, path: "Path", exits: range
    ) -> None:
        super().__init__(xp, sizes, layers, alpha, path.states(exits), None)
        self._path, self._exits_read = path, exits

    @cached_property
    def logits(self) -> torch.Tensor:
        return torch.stack([self._path.logits(exit) for exit in self._exits_read], dim=1)


class Path:
    """What n tokens have shown at the exits so far.

    Args:
        decoder: with exits.
        remembers: whether earlier exits are read again; without it only the newest is kept.

    Attributes:
        heads: LM heads computed for them, one for each token and exit.
        observed: what a policy with a memory has observed so far.
    """

    def __init__(self, decoder: MultiExitDecoder, remembers: bool = True) -> None:
        self._decoder, self._remembers = decoder, remembers
        self._states: dict[int, torch.Tensor] = {}
        self._logits: dict[int, torch.Tensor] = {}
        self._newest = 0
        self.observed: list[torch.Tensor] = []
        self.heads = 0

    def show(self, states: torch.Tensor) -> None:
        """Takes the states `[n, H]` of the next exit."""
        if not self._remembers:
            self._states.clear()
            self._logits.clear()
        self._newest += 1
        self._states[self._newest] = states

    def states(self, exits: range) -> torch.Tensor:
        """`[n, t, H]`, of some exits, numbers from 1."""
        if len(exits) == 1:
            return self._states[exits[0]][:, None]
        return torch.stack([self._states[exit] for exit in exits], dim=1)

    def logits(self, exit: int) -> torch.Tensor:
        """What an exit answers, `[n, C]`; computed once."""
        if exit not in self._logits:
            states = self._states[exit]
            self._logits[exit] = self._decoder.answer(states, exit).float()
            self.heads += len(states)
        return self._logits[exit]

    def known_logits(self, rows: torch.Tensor) -> torch.Tensor | None:
        """What the newest exit answers for some rows, if that was computed already."""
        found = self._logits.get(self._newest)
        return None if found is None else found[rows]

    def keep(self, rows: torch.Tensor) -> None:
        """Lets go of all tokens but these, int64 `[m]`."""
        if not self._remembers:  # the next exit takes the place of this one
            return
        self._states = {exit: states[rows] for exit, states in self._states.items()}
        self._logits = {exit: logits[rows] for exit, logits in self._logits.items()}
        self.observed = [observed[rows] for observed in self.observed]


def policy_leave(decoder: MultiExitDecoder, policy: ExitPolicy) -> Leave:
    """Who leaves by a policy, for `forward_with_exits`."""
    decisions = Decisions(decoder, policy)
    path = Path(decoder)

    def leave(exit: int, states: torch.Tensor) -> torch.Tensor:
        nonlocal path
        if exit == 1:
            path = Path(decoder, decisions.remembers)
        # All tokens go on: what one that has left would have shown is asked about in vain.
        with torch.no_grad():
            path.show(states.detach().flatten(0, 1))
            found = decisions.leave(exit, path)
        if found is None:
            return torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
        return torch.tensor(found, device=states.device).view(states.shape[:2])

    return leave


class Decisions:
    """A policy, as it decides about the tokens of a decoder.

    Args:
        decoder: with exits.
        policy: at one speed.

    Raises:
        CeeGymError: if the policy was learned on other states, or is held at no speed.

    Attributes:
        sizes: of the decoder.
        has_memory: whether the policy reads what it has observed at earlier exits.
        remembers: whether that, or a part of an observation, reads earlier exits.
    """

    def __init__(self, decoder: MultiExitDecoder, policy: ExitPolicy) -> None:
        self.sizes = Sizes(decoder.num_layers, decoder.width, decoder.num_labels)
        known = None if policy.model is None else decoder.fingerprint
        policy.check_fits(layout_of(policy.observe, self.sizes), known)
        policy.check_has_a_speed()
        self._decider = policy.decider(decoder.device)
        self._asked = frozenset(policy.score.exit_layers(decoder.num_layers, policy.threshold))
        self.has_memory = policy.score.has_memory
        self._needs_path = needs_path(self._decider.parts)
        self.remembers = self.has_memory or self._needs_path

    def leave(self, exit: int, path: Path) -> list[bool] | None:
        """Which of the tokens leave; None where none can.

        Args:
            exit: the number of the exit that they have just shown.
            path: of these tokens.
        """
        if self.has_memory:
            path.observed.append(self._observe(exit, path))
        if exit not in self._asked:
            return None
        if self.has_memory:
            return self._decider.leave(torch.stack(path.observed, dim=1), exit)
        return self._decider.leave(self._observe(exit, path), exit)

    def _observe(self, exit: int, path: Path) -> torch.Tensor:
        decider = self._decider
        return observe_exit(
            decider.parts, self.sizes, exit, decider.alpha, path, whole_path=self._needs_path
        )


def observe_exit(
    parts: Sequence[str], sizes: Sizes, exit: int, alpha: float, path: Path, *, whole_path: bool
) -> torch.Tensor:
    """What is observed of n tokens at an exit, float32 `[n, D]`.

    Args:
        parts: of an observation.
        sizes: of the decoder.
        exit: its number.
        alpha: the price of one layer.
        path: of the tokens, up to this exit.
        whole_path: whether a part reads the exits before it.
    """
    first = 1 if whole_path else exit
    exits = range(first, exit + 1)
    return observe_last(parts, _SeenToken(sizes, (first, exit), alpha, path, exits))
