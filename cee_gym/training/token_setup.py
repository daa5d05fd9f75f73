"""What the phases that touch a decoder and its text share."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from cee_gym.backbones.sequences import Rows, TokenSequences, encode_examples
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.exits.lm_head import MultiExitDecoder, has_exits, load_lm_tokenizer
from cee_gym.tasks.prompted import Example, PromptedTask, load_examples
from cee_gym.training.config import RecordConfig, TokenConfig, refuse_changed
from cee_gym.training.partition import DEPLOYED, partition

USUAL_TOKENS = 256


class Shares(NamedTuple):
    """Rows of train.

    Attributes:
        fit: what exits and backbone are trained on.
        policy: what the policy learns on.
        calibration: what thresholds are chosen on.
    """

    fit: Rows
    policy: Rows
    calibration: Rows


@dataclass(frozen=True)
class TokenSetup:
    """Text, decoder, and how its exits are made and recorded.

    Attributes:
        task: whose text.
        backbone: a directory, a hub name or a .gguf file of a causal language model; or what
            `MultiExitDecoder.save_pretrained` wrote, whose exits are then kept.
        splits: the text.
        config: shares, seed, longest text, type of the states.
        tokens: how exits are made.

    Raises:
        BackboneError: if the backbone has exits, and others are asked for.
        CeeGymError: if a setting is for classification.
    """

    task: PromptedTask
    backbone: str
    splits: dict[str, list[Example]]
    config: RecordConfig
    tokens: TokenConfig

    def __post_init__(self) -> None:
        for names, instead in (
            (("recipe", "objective", "warm_up"), "adapters and loss"),
            (("pooler", "pooling"), "nothing"),
            (("policy_data", "folds"), "held_out"),
            (("precision",), "nothing"),
        ):
            refuse_changed(
                self.config, names, f"classification; generation knows {instead} in its place"
            )
        if has_exits(self.backbone) and self.tokens.exits is not None:
            raise BackboneError(
                f"{self.backbone} keeps the exits it has: leave out exits, or give a causal "
                "language model without exits"
            )

    @classmethod
    def load(
        cls,
        task: PromptedTask,
        backbone: str,
        data: str | None,
        config: RecordConfig,
        tokens: TokenConfig,
    ) -> "TokenSetup":
        """Loads the text.

        Raises:
            DataError: if it cannot be reached or does not fit the task.
        """
        splits = load_examples(task, data)
        if tokens.rows is not None:
            rng = np.random.default_rng(0)
            for split, most in (("train", tokens.rows), ("dev", max(2, tokens.rows // 4))):
                rows = np.sort(rng.permutation(len(splits[split]))[:most])
                splits[split] = [splits[split][row] for row in rows]
        return cls(task, backbone, splits, config, tokens)

    @cached_property
    def text_fingerprint(self) -> str:
        """Names the text: equal for two setups if and only if it is."""
        return hashlib.sha256(json.dumps(self.splits).encode()).hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's."""
        return load_lm_tokenizer(self.backbone)

    @cached_property
    def text(self) -> dict[str, TokenSequences]:
        """The splits in token ids."""
        most = self.config.max_tokens or USUAL_TOKENS
        return {
            split: encode_examples(self.task, self.tokenizer, examples, most)
            for split, examples in self.splits.items()
        }

    @cached_property
    def shares(self) -> Shares:
        """Who learns from which texts of train."""
        config = self.config
        found = partition(
            len(self.splits["train"]),
            "held_out",
            held_out=config.held_out,
            calibration=config.calibration,
            seed=config.seed,
        )
        return Shares(found.fit[DEPLOYED], found.policy, found.calibration)

    def initial_model(self) -> MultiExitDecoder:
        """The decoder with fresh adapters, or with the exits it has.

        Raises:
            BackboneError: if it cannot be loaded, or its vocabulary is not the tokenizer's.
        """
        if has_exits(self.backbone):
            decoder = MultiExitDecoder.load(self.backbone)
        else:
            decoder = MultiExitDecoder.from_backbone(
                self.backbone,
                self.tokens.exits,
                adapter_rank=self.tokens.adapter_rank,
                seed=self.config.seed,
            )
        most = max(self.tokenizer.get_vocab().values())
        if most >= decoder.num_labels:
            raise BackboneError(
                f"the tokenizer gives token ids up to {most}, and {self.backbone} knows only those "
                f"below {decoder.num_labels}: give the tokenizer that it was trained with"
            )
        context = decoder.context
        most = self.config.max_tokens or USUAL_TOKENS
        if context is not None and most > context:
            raise CeeGymError(
                f"max_tokens {most} is more than the context of this model, {context}: give less"
            )
        return decoder

    def description(self, split: str) -> dict[str, object]:
        """What a trace of this split says about where it comes from."""
        return {
            "task": self.task.full_name,
            "split": split,
            "backbone": Path(self.backbone).name,
            "policy_data": "held_out",
            "seed": self.config.seed,
            "max_tokens": self.config.max_tokens or USUAL_TOKENS,
        }

    def to_json(self) -> dict[str, Any]:
        """How it is recorded, for config.json."""
        return {**asdict(self.config), "tokens": asdict(self.tokens)}
