"""Decoding with early exits, as transformers' `generate(custom_generate=...)` takes it."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from cee_gym.errors import CeeGymError, check_number
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.decisions import Decisions
from cee_gym.generation.steps import CopySteps, RecomputeSteps, Steps, Work
from cee_gym.policies.base import ExitPolicy

CachePolicy = Literal["copy", "recompute", "verify"]


@dataclass(frozen=True, eq=False)
class TokenExits:
    """Where the new tokens of B rows left, and what that took.

    Attributes:
        exit_layer: int64 `[B, new]`, the layer that each token was read at, from 1; 0 after the
            end of a row.
        layers_run: layers run for new tokens, one for each token and layer.
        heads_evaluated: LM heads computed, one for each token and exit.
        fills: keys and values made for layers that were not run, one for each token and layer.
    """

    exit_layer: npt.NDArray[np.int64]
    layers_run: int
    heads_evaluated: int
    fills: int

    @property
    def tokens(self) -> int:
        """How many new tokens there are."""
        return int((self.exit_layer > 0).sum())

    @property
    def mean_exit_layer(self) -> float:
        """Over all new tokens."""
        return float(self.exit_layer[self.exit_layer > 0].mean())


@dataclass(eq=False)
class EarlyExitDecoding:
    """Decodes with a `MultiExitDecoder`, each token only as deep as a policy lets it.

        decoding = EarlyExitDecoding(policy, cache="copy")
        model.generate(**inputs, max_new_tokens=64, custom_generate=decoding)
        decoding.exits

    Greedy and sampling, with the logits processors and stopping criteria of `generate`. A prompt
    runs at full depth, but for its last token, which is decided like every new one. Rows that have
    left a layer, and rows that have ended, are not run.

    Args:
        policy: learned on the states of this model; held at one speed.
        cache: what later tokens see of one that has left, at deeper layers. `"copy"`: the state it
            left with, through each layer's own norm and projections. `"recompute"`: what the full
            model would show; tokens that have left run on when a later one goes deeper.
            `"verify"`: tokens that have left are drafts, which the full model checks in blocks:
            exactly its greedy text, one row only.
        min_prefill: tokens at places before this one, prompt included, run at full depth.
        draft_tokens: how many tokens `"verify"` drafts before they are checked.
        streamer: takes the new tokens; of one row.
        tokenizer: for `stop_strings`.

    Raises:
        CeeGymError: if an argument is out of range.

    Attributes:
        exits: of the newest text; None before there is one.
    """

    policy: ExitPolicy
    cache: CachePolicy = "copy"
    min_prefill: int = 0
    draft_tokens: int = 4
    streamer: BaseStreamer | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    exits: TokenExits | None = field(default=None, init=False)
    _decisions: tuple[MultiExitDecoder, Decisions] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.cache not in get_args(CachePolicy):
            raise CeeGymError(
                f"cache must be one of {', '.join(get_args(CachePolicy))}, got {self.cache!r}"
            )
        check_number("min_prefill", self.min_prefill, 0)
        check_number("draft_tokens", self.draft_tokens, 1)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        decoder: MultiExitDecoder | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """What `generate` calls; see `MultiExitDecoder.generate`.

        Raises:
            CeeGymError: if something was asked for that cannot be honoured.
        """
        if decoder is None:
            raise CeeGymError(
                "EarlyExitDecoding reads the exits of a MultiExitDecoder: call the generate of "
                "that, not of the backbone"
            )
        self._refuse(decoder, input_ids, generation_config, model_kwargs)
        if self._decisions is None or self._decisions[0] is not decoder:
            self._decisions = decoder, Decisions(decoder, self.policy)
        mask = model_kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(input_ids)
        kind = CopySteps if self.cache == "copy" else RecomputeSteps
        steps = kind(
            decoder, self._decisions[1], mask, int(generation_config.max_length), self.min_prefill
        )
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        with torch.inference_mode():
            steps.prefill(input_ids[:, :-1])
            given = input_ids, logits_processor, stopping_criteria, generation_config
            if isinstance(steps, RecomputeSteps) and self.cache == "verify":
                ids, exits = self._verified(steps, *given)
            else:
                ids, exits = self._decoded(steps, *given)
        if self.streamer is not None:
            self.streamer.end()
        depths = np.array([0, *decoder.depths])
        work: Work = steps.work
        self.exits = TokenExits(depths[exits], work.layers, work.heads, work.fills)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=ids)  # type: ignore[arg-type]
        return ids

    def _decoded(
        self,
        steps: Steps,
        ids: torch.Tensor,
        processors: Any,
        criteria: Any,
        config: GenerationConfig,
    ) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """The rows with their new tokens, and the number of the exit of each; 0 where none."""
        size = len(ids)
        going = torch.ones(size, dtype=torch.bool, device=ids.device)
        pad = _pad(config)
        exits: list[torch.Tensor] = []
        while bool(going.any()):
            rows = None if bool(going.all()) else going.nonzero()[:, 0]
            newest = ids[:, -1] if rows is None else ids[rows, -1]
            step = steps(newest, rows, ids.shape[1] - 1)
            logits, at = step
            if rows is not None:
                # Whole batches, so that sampling draws the same numbers as `generate` does.
                logits = step.logits.new_zeros(size, step.logits.shape[1])
                logits[rows] = step.logits
                at = step.exits.new_zeros(size)
                at[rows] = step.exits
            tokens = _choose(processors(ids, logits), bool(config.do_sample))
            if rows is not None:
                tokens = torch.where(going, tokens, pad)
            exits.append(at)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            if self.streamer is not None:
                self.streamer.put(tokens.cpu())
            going = going & ~criteria(ids, None)
        return ids, torch.stack(exits, dim=1).cpu().numpy()

    def _verified(
        self,
        steps: RecomputeSteps,
        ids: torch.Tensor,
        processors: Any,
        criteria: Any,
        config: GenerationConfig,
    ) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """See `_decoded`; of one row, exactly as the full model goes on."""
        most = int(config.max_length)
        last = steps.decoder.num_layers
        exits: list[int] = []
        while True:
            drafts, drafted_at = ids, list[int]()
            while len(drafted_at) < self.draft_tokens and drafts.shape[1] < most:
                step = steps(drafts[:, -1], None, drafts.shape[1] - 1)
                token = _choose(processors(drafts, step.logits), False)
                drafts = torch.cat([drafts, token[:, None]], dim=1)
                drafted_at.append(int(step.exits[0]))
                if drafted_at[-1] == last:
                    break
            first = ids.shape[1]
            full = steps.finish(range(first - 1, drafts.shape[1] - 1))
            for place, (logits, at) in enumerate(zip(full, drafted_at, strict=True)):
                token = _choose(processors(ids, logits[None]), False)
                agrees = bool(token[0] == drafts[0, first + place])
                ids = torch.cat([ids, token[:, None]], dim=1)
                exits.append(at if agrees else last)
                if self.streamer is not None:
                    self.streamer.put(token.cpu())
                if bool(criteria(ids, None)[0]):
                    return ids, np.array([exits])
                if not agrees:
                    break
            steps.forget(ids.shape[1] - 1)

    def _refuse(
        self,
        decoder: MultiExitDecoder,
        ids: torch.Tensor,
        config: GenerationConfig,
        given: dict[str, Any],
    ) -> None:
        """Refuses what would otherwise be dropped silently.

        Raises:
            CeeGymError: naming it.
        """
        for name, unlike in (
            ("num_beams", (None, 1)),
            ("penalty_alpha", (None, 0)),
            ("dola_layers", (None,)),
            ("prompt_lookup_num_tokens", (None,)),
            ("assistant_early_exit", (None,)),
            ("output_scores", (None, False)),
            ("output_logits", (None, False)),
            ("output_attentions", (None, False)),
            ("output_hidden_states", (None, False)),
        ):
            if (value := getattr(config, name, None)) not in unlike:
                raise CeeGymError(
                    f"{name}={value} is not possible with early exits, which decode greedily or by "
                    "sampling, one token after another: leave it out"
                )
        if given.get("inputs_embeds") is not None:
            raise CeeGymError("give input_ids: early exits do not take inputs_embeds")
        past = given.get("past_key_values")
        if past is not None and past.get_seq_length():
            raise CeeGymError(
                "a cache of an earlier text cannot be gone on with under early exits: give the "
                "whole text as input_ids"
            )
        mask = given.get("attention_mask")
        if mask is not None and bool((mask[:, -1] == 0).any()):
            raise CeeGymError("prompts must be padded on the left: set tokenizer.padding_side")
        if not ids.shape[1]:
            raise CeeGymError("the prompt is empty: give at least one token, such as the first")
        context = decoder.context
        if context is not None and int(config.max_length) > context:
            raise CeeGymError(
                f"a prompt of {ids.shape[1]} tokens and {config.max_length - ids.shape[1]} new ones"
                f" are more than the context of this model, {context}: shorten the prompt, or ask "
                "for fewer new tokens"
            )
        if self.cache == "verify":
            if len(ids) > 1:
                raise CeeGymError(f"verify decodes one row at a time, got {len(ids)}: take copy")
            if config.do_sample:
                raise CeeGymError("verify is greedy: leave do_sample out, or take copy")
        if self.streamer is not None and len(ids) > 1:
            raise CeeGymError(f"a streamer takes one row, got {len(ids)}")


def _choose(scores: torch.Tensor, sample: bool) -> torch.Tensor:
    """The next token of each row, int64 `[B]`."""
    if not sample:
        return scores.argmax(dim=-1)
    return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]


def _pad(config: GenerationConfig) -> torch.Tensor:
    """What stands after the end of a row."""
    found = getattr(config, "_pad_token_tensor", None)
    return torch.tensor(0) if found is None else found
