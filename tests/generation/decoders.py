"""Tiny decoders of nine families, and policies whose exits are drawn per token."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
import transformers as tr

from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.observation import Layout, Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Rule
from cee_gym.policies.score import Floats

VOCABULARY, LAYERS = 50, 4
_S: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_S, "num_key_value_heads": 2}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": VOCABULARY}
CONFIGS: dict[str, Any] = {
    "llama": lambda: tr.LlamaConfig(**_GROUPED),
    "mistral": lambda: tr.MistralConfig(**_GROUPED, sliding_window=6),
    "qwen2": lambda: tr.Qwen2Config(**_GROUPED),
    "qwen3": lambda: tr.Qwen3Config(**_GROUPED, head_dim=8),
    "gemma3": lambda: tr.Gemma3TextConfig(
        **_GROUPED,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "gpt2": lambda: tr.GPT2Config(**_IDS, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64),
    "gpt_neox": lambda: tr.GPTNeoXConfig(**_S),
    "opt": lambda: tr.OPTConfig(
        **_IDS,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "falcon": lambda: tr.FalconConfig(
        **_IDS,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        new_decoder_architecture=False,
        multi_query=True,
        alibi=False,
        bias=False,
        max_position_embeddings=64,
    ),
}


def decoder_of(
    family: str, depths: tuple[int, ...] | None = None, seed: int = 0
) -> MultiExitDecoder:
    """A random decoder, whose adapters do something."""
    torch.manual_seed(seed)
    model = tr.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    for parameter in model.parameters():  # far from 0, so that texts differ
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    decoder = MultiExitDecoder(model, depths, adapter_rank=4)
    for adapter in decoder.adapters:
        torch.nn.init.normal_(adapter.up.weight, std=0.3)
    return decoder


class Scattered(Rule):
    """Leaves as a hash of the state says: depths differ from token to token, and repeat."""

    name = "scattered"
    reads = ("hidden",)

    def __init__(self, share: float = 0.4) -> None:
        self.share = share

    @property
    def least(self) -> float:
        return 1 - self.share

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        # A rounding far coarser than that of sums in another order.
        signs = np.sin(37.0 * observations[..., layout["hidden"]][..., :8].sum(-1))
        return np.asarray((signs + 1) / 2, dtype=np.float32)

    def settings(self) -> dict[str, Any]:
        return {"share": self.share}

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        layout: Layout,
        alpha_range: tuple[float, float],
    ) -> Self:
        return cls(**settings)


def policy_for(decoder: MultiExitDecoder, share: float = 0.4) -> ExitPolicy:
    """Depths drawn per token; with share 0 all at full depth."""
    sizes = Sizes(decoder.num_layers, decoder.width, decoder.num_labels)
    rule = Scattered(share)
    return ExitPolicy(rule, layout_of(("hidden",), sizes), threshold=rule.least if share else 1.0)


def prompts(rows: int, seed: int = 0, shortest: int = 1) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded on the left."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, 9, rows)
    ids = np.zeros((rows, lengths.max()), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = rng.integers(3, VOCABULARY, length)
        mask[row, -length:] = 1
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
