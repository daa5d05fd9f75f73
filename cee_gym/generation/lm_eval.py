"""Early exits in lm-eval: `pip install "cee-gym[lm-eval]"`.

    from lm_eval import simple_evaluate
    lm = EarlyExitLM(EarlyExitTextGeneration.from_pretrained("runs/dolly", saved_layers=0.2))
    simple_evaluate(model=lm, tasks=["hellaswag"])

Log-likelihoods are read at the exits that the policy takes, under state copying; the context but
for its last token runs at full depth, as in decoding.
"""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from cee_gym.exits.forced import among, forward_with_exits
from cee_gym.generation.decisions import policy_leave
from cee_gym.generation.decoding import EarlyExitDecoding
from cee_gym.generation.text_generation import EarlyExitTextGeneration


class EarlyExitLM(HFLM):  # type: ignore[misc]
    """A model of lm-eval whose tokens leave early.

    Args:
        generator: decoder, tokenizer and policy, at one speed.
        batch_size: requests run together.

    Attributes:
        layers_run: layers that tokens of continuations have run, one for each token and layer.
        tokens: how many tokens these were.
    """

    def __init__(self, generator: EarlyExitTextGeneration, batch_size: int = 8) -> None:
        super().__init__(
            pretrained=generator.decoder.backbone,
            tokenizer=generator.tokenizer,
            batch_size=batch_size,
            backend="causal",
        )
        self._generator = generator
        self._leave = policy_leave(generator.decoder, generator.policy)
        # From the tokens that are run to how many of them only are context.
        self._contexts: dict[tuple[int, ...], int] = {}
        self.layers_run = self.tokens = 0

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        for _, context, continuation in requests:
            run = tuple((context + continuation)[-(self.max_length + 1) :][:-1])
            self._contexts[run] = max(0, len(run) - len(continuation))
        try:
            return super()._loglikelihood_tokens(requests, *args, **kwargs)
        finally:
            self._contexts.clear()

    def _model_call(
        self,
        inps: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        decoder = self._generator.decoder
        lengths = sorted({len(run) for run in self._contexts}, reverse=True)
        free = torch.zeros_like(inps, dtype=torch.bool)
        for row, ids in enumerate(inps.tolist()):
            run = next(t for n in lengths if (t := tuple(ids[:n])) in self._contexts)
            free[row, self._contexts[run] : len(run)] = True
        with torch.inference_mode():
            forced = forward_with_exits(decoder, inps, among(self._leave, free))
            states, exits = forced.left_with.flatten(0, 1), forced.exits.flatten()
            logits = decoder.answer_each(states, exits).float().view(*inps.shape, -1)
        depths = torch.tensor(decoder.depths, device=inps.device)
        self.layers_run += int(depths[forced.exits[free] - 1].sum())
        self.tokens += int(free.sum())
        return logits

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> torch.Tensor:
        generator = self._generator
        decoding = EarlyExitDecoding(generator.policy, generator.cache)
        kwargs.setdefault("do_sample", False)
        if not kwargs["do_sample"]:
            kwargs.pop("temperature", None)
        out: torch.Tensor = generator.decoder.generate(
            input_ids=context,
            max_length=max_length,
            stop_strings=stop or None,
            tokenizer=generator.tokenizer,
            pad_token_id=generator.tokenizer.pad_token_id,
            custom_generate=decoding,
            **kwargs,
        )
        return out
