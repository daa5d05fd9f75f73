"""Text to token ids, and batches of like length."""

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cee_gym.errors import BackboneError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

Rows = npt.NDArray[np.int64]


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a backbone.

    Raises:
        BackboneError: if there is none, or it has no padding token.
    """
    try:
        # Where it is left open transformers asks on the standard input, which may hold texts.
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        if tokenizer.pad_token_id is not None:
            # What is damaged may only show where it is used.
            tokenizer(["a", "a b"], ["a", "b"], truncation=True, max_length=8, padding=True)
            tokenizer("a")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of any kind: tokenizers panics past Exception
        raise BackboneError(f"no tokenizer at {name_or_path}: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # Where weights lie without a vocabulary, transformers makes a tokenizer that knows no word.
        raise BackboneError(f"no tokenizer at {name_or_path}: there is no vocabulary")
    if tokenizer.pad_token_id is None:
        raise BackboneError(
            f"the tokenizer at {name_or_path} has no padding token, which batches of texts need: "
            "set its pad_token"
        )
    return tokenizer


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel, *, pair: bool
) -> None:
    """Refuses a tokenizer that can give what the backbone does not take.

    Args:
        tokenizer: said to be the backbone's.
        backbone: not run.
        pair: whether pairs of texts are to be encoded.

    Raises:
        BackboneError: saying what does not fit.
    """
    name = type(backbone).__name__
    most = max(tokenizer.get_vocab().values())
    known = len(next(backbone.get_input_embeddings().parameters()))
    if most >= known:
        raise BackboneError(
            f"the tokenizer gives token ids up to {most}, and {name} knows only those below "
            f"{known}: give the tokenizer that the backbone was trained with, or resize its "
            "token embeddings"
        )
    columns = tokenizer("a", "a" if pair else None)
    if lacking := [name for name in ("input_ids", "attention_mask") if name not in columns]:
        raise BackboneError(
            f"the tokenizer gives no {' and no '.join(lacking)}: put it into the tokenizer's "
            "model_input_names"
        )
    takes = inspect.signature(backbone.forward).parameters
    extra = sorted(set(columns) - set(takes))
    if extra and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise BackboneError(
            f"the tokenizer gives {', '.join(extra)}, which {name} does not take: leave it out of "
            "the tokenizer's model_input_names"
        )
    kinds = max(columns.get("token_type_ids", [0])) + 1
    if kinds > (most_kinds := getattr(backbone.config, "type_vocab_size", None) or kinds):
        raise BackboneError(
            f"the tokenizer gives token_type_ids up to {kinds - 1}, and {name} knows only those "
            f"below {most_kinds}: give the tokenizer that the backbone was trained with"
        )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_tokens: int,
) -> dict[str, torch.Tensor]:
    """Token ids of a few texts, padded on the right to the longest.

    Args:
        tokenizer: the backbone's.
        texts: B texts.
        pairs: B second texts, or None.
        max_tokens: longer rows are cut, the longer text of a pair first.

    Returns:
        The tensors the backbone takes (`input_ids`, `attention_mask` and, for some,
        `token_type_ids`), int64 `[B, T]`.
    """
    return dict(
        tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=max_tokens,
            padding=True,
            padding_side="right",  # a text's first token is to come first
            return_tensors="pt",
        )
    )


class EncodedText:
    """A dataset in token ids, from which padded batches are drawn.

    Attributes:
        labels: int64 `[N]`, on the CPU.
        lengths: int64 `[N]`, in tokens.
    """

    def __init__(
        self, data: "Dataset", tokenizer: PreTrainedTokenizerBase, max_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        pairs = list(data["pair"]) if "pair" in data.column_names else None
        self._rows = tokenizer(list(data["text"]), pairs, truncation=True, max_length=max_tokens)
        self.labels = torch.tensor(data["label"])
        self.lengths: Rows = np.array([len(ids) for ids in self._rows["input_ids"]])

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Rows, device: torch.device) -> dict[str, torch.Tensor]:
        """The tensors of some rows, padded on the right to the longest, int64 `[B, T]`."""
        columns = {name: [values[row] for row in rows] for name, values in self._rows.items()}
        padded = self._tokenizer.pad(columns, padding_side="right", return_tensors="pt")
        return {name: tensor.to(device, non_blocking=True) for name, tensor in padded.items()}

    def batches(
        self, rows: Rows, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Rows]:
        """Splits rows into batches of like length, so that little is spent on padding.

        Args:
            rows: positions `[M]`.
            batch_size: rows a batch; the last may be smaller.
            rng: for training: mixes rows of similar length, and the order of the batches. Without
                it the longest rows come first, so that too little memory shows at once.
        """
        lengths = self.lengths[rows].astype(np.float64)
        if rng is not None:
            lengths *= rng.uniform(0.8, 1.25, len(rows))
        order = rows[np.argsort(-lengths, kind="stable")]
        starts = np.arange(0, len(rows), batch_size)
        if rng is not None:
            rng.shuffle(starts)
        for start in starts:
            yield order[start : start + batch_size]
