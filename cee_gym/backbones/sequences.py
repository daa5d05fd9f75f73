"""Prompts and answers as token ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from cee_gym.documents import written_whole
from cee_gym.errors import DataError
from cee_gym.tasks.prompted import Example, PromptedTask

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """Texts in token ids, prompt and answer.

    Attributes:
        ids: int64, all texts one after another.
        starts: int64 `[N + 1]`, where each begins, and where the last one ends.
        prompts: int64 `[N]`, how many tokens of each are prompt; at least one.
    """

    ids: Rows
    starts: Rows
    prompts: Rows

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Rows:
        """Tokens of each, int64 `[N]`."""
        return np.diff(self.starts)

    @property
    def answer_tokens(self) -> Rows:
        """Tokens of each answer, int64 `[N]`."""
        return self.lengths - self.prompts

    def of(self, row: int) -> Rows:
        """The ids of one text."""
        return self.ids[self.starts[row] : self.starts[row + 1]]

    def take(self, rows: Rows) -> "TokenSequences":
        """Some of the texts only."""
        starts = np.concatenate([[0], np.cumsum(self.lengths[rows])])
        ids = np.concatenate([self.of(int(row)) for row in rows])
        return TokenSequences(ids, starts, self.prompts[rows])

    def batch(self, rows: Rows) -> torch.Tensor:
        """int64 `[B, T]`, padded with 0 on the right."""
        out = np.zeros((len(rows), int(self.lengths[rows].max())), dtype=np.int64)
        for place, row in enumerate(rows):
            out[place, : self.lengths[row]] = self.of(row)
        return torch.from_numpy(out)

    def decides(self, rows: Rows) -> torch.Tensor:
        """Which tokens of `batch` predict a token of the answer, bool `[B, T]`."""
        places = np.arange(int(self.lengths[rows].max()))
        first, last = self.prompts[rows] - 1, self.lengths[rows] - 1
        return torch.from_numpy((places >= first[:, None]) & (places < last[:, None]))

    def batches(
        self, rows: Rows, size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Rows]:
        """Batches of rows of like length; in random order where there is a generator."""
        order = rows[self.lengths[rows].argsort(kind="stable")[::-1]]
        if rng is not None:
            # Among random groups of batches, so that batches differ from epoch to epoch.
            mixed = rng.permutation(rows)
            groups = np.array_split(mixed, max(1, len(rows) // (size * 8)))
            order = np.concatenate([g[self.lengths[g].argsort(kind="stable")] for g in groups])
        made = [order[start : start + size] for start in range(0, len(order), size)]
        if rng is not None:
            rng.shuffle(made)
        yield from made

    def save(self, file: Path) -> None:
        """Writes them."""
        arrays = {"ids": self.ids, "starts": self.starts, "prompts": self.prompts}
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        with written_whole(file) as unfinished:
            save_file(tensors, unfinished)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what `save` wrote."""
        return cls(**{name: tensor.numpy() for name, tensor in load_file(file).items()})


def prompt_ids(task: PromptedTask, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The token ids of a prompt, with the chat template of the tokenizer or that of the task."""
    if task.chat and tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(
        tokenizer(task.template.format(prompt=prompt), add_special_tokens=False)["input_ids"]
    )
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


def encode_examples(
    task: PromptedTask,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_tokens: int,
) -> TokenSequences:
    """Examples in token ids; long prompts are cut in front, long answers at the end.

    Raises:
        DataError: if a text would begin with a token of its answer.
    """
    found, prompts = [], []
    for example in examples:
        prompt = prompt_ids(task, tokenizer, example.prompt)
        answer = list(tokenizer(example.answer, add_special_tokens=False)["input_ids"])
        if task.ends and tokenizer.eos_token_id is not None:
            answer.append(tokenizer.eos_token_id)
        if not prompt:
            raise DataError(
                f"the prompt of {example.row_id} is empty, and the tokenizer has no token to begin "
                "with: give a task with a template"
            )
        prompt = prompt[-max(1, max_tokens * 3 // 4) :]
        found.append(np.array([*prompt, *answer[: max_tokens - len(prompt)]], dtype=np.int64))
        prompts.append(len(prompt))
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in found])])
    return TokenSequences(np.concatenate(found), starts, np.array(prompts))
