"""Text generation with early exits, in the manner of transformers' pipelines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextStreamer

from cee_gym.backbones.sequences import prompt_ids
from cee_gym.documents import read_document, write_document, written_into
from cee_gym.errors import CeeGymError, check_number
from cee_gym.exits.lm_head import MultiExitDecoder, has_exits, load_lm_tokenizer
from cee_gym.generation.decoding import CachePolicy, EarlyExitDecoding
from cee_gym.inference.pretrained import Measured, find_policy, locate, save_policy, weights_in
from cee_gym.observation import Sizes
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import full_depth
from cee_gym.policies.speeds import Speed
from cee_gym.runs import Run, is_run
from cee_gym.tasks.prompted import PromptedTask, get_prompted
from cee_gym.traces.recordings import open_split

GENERATION = "generation.json"
VERSION = 1


class Generated(TypedDict):
    """What became of a prompt.

    Attributes:
        generated_text: the answer, without the prompt.
        tokens: of the answer, as texts.
        exit_layers: the layer that each token was read at, from 1.
    """

    generated_text: str
    tokens: list[str]
    exit_layers: list[int]


@dataclass(frozen=True, eq=False)
class EarlyExitTextGeneration:
    """Answers prompts, each token only as deep as the policy lets it.

        generator = EarlyExitTextGeneration.from_pretrained("runs/dolly", saved_layers=0.2)
        generator("Why is the sky blue?", max_new_tokens=64)

    Attributes:
        decoder: with exits.
        tokenizer: the decoder's.
        policy: at one speed.
        task: whose template stands around a prompt.
        measured: what is known about the policy.
        cache: see `EarlyExitDecoding`.
    """

    decoder: MultiExitDecoder
    tokenizer: PreTrainedTokenizerBase
    policy: ExitPolicy
    task: PromptedTask
    measured: Measured
    cache: CachePolicy = "copy"

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        *,
        cache: CachePolicy = "copy",
        full_depth: bool = False,
        revision: str | None = None,
        **speed: Any,
    ) -> Self:
        """Reads a run of `cee-gym train`, or what `save_pretrained` wrote, here or on the hub.

        Args:
            name_or_directory: where it is.
            cache: see `EarlyExitDecoding`.
            full_depth: run every token through all layers, to compare with.
            revision: of the hub's.
            speed: `at`, `threshold`, `alpha`, `saved_layers` or `points_lost`; see
                `cee_gym.policies.speeds.Speed`.

        Raises:
            CeeGymError: if something is missing or damaged, or the speed is not available.
        """
        directory = locate(name_or_directory, revision)
        weights = weights_in(directory)
        if not has_exits(weights):
            raise CeeGymError(
                f"{name_or_directory} holds no decoder with exits: for a classifier use cee-gym "
                "predict or EarlyExitPipeline"
            )
        if is_run(directory):
            task = open_split(Run.open(directory).recording, "dev").header.task
        else:
            file = directory / GENERATION
            remedy = "save the generator again"
            task = str(read_document(file, "description of a generator", remedy=remedy)["task"])
        decoder = MultiExitDecoder.load(weights).eval()
        policy, measured = find_policy(directory)
        policy, measured = measured.at(Speed(**speed), policy)
        if full_depth:
            policy = never(decoder)
        policy.check_has_a_speed()
        tokenizer = load_lm_tokenizer(weights)
        return cls(decoder, tokenizer, policy, get_prompted(task), measured, cache)

    def __repr__(self) -> str:
        return f"<EarlyExitTextGeneration {type(self.decoder.backbone).__name__}, {self.policy!r}>"

    def at(self, speed: Speed) -> "EarlyExitTextGeneration":
        """The same at another speed.

        Raises:
            CeeGymError: if it is not available.
        """
        policy, measured = self.measured.at(speed, self.policy)
        policy.check_has_a_speed()
        return EarlyExitTextGeneration(
            self.decoder, self.tokenizer, policy, self.task, measured, self.cache
        )

    def encode(self, prompt: str, max_new_tokens: int) -> list[int]:
        """The token ids of a prompt.

        Raises:
            CeeGymError: if it is empty, or too long for the context.
        """
        if self.task.chat and not prompt.strip():
            raise CeeGymError("the prompt is empty: give a text")
        ids = prompt_ids(self.task, self.tokenizer, prompt)
        if not ids:
            raise CeeGymError("the prompt is empty: give a text")
        context = self.decoder.context
        if context is not None and len(ids) + max_new_tokens > context:
            raise CeeGymError(
                f"the prompt has {len(ids)} tokens, and with {max_new_tokens} new ones that is "
                f"more than the context of this model, {context}: shorten it, or ask for fewer"
            )
        return ids

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 128,
        batch_size: int = 1,
        **settings: Any,
    ) -> list[Generated]:
        """Answers prompts.

        Args:
            prompts: one or several.
            max_new_tokens: of each answer, at most.
            batch_size: prompts run together.
            settings: of transformers' `generate`, such as `do_sample` and `temperature`.

        Returns:
            One answer for each prompt, in order.

        Raises:
            CeeGymError: if a prompt is empty or too long.
        """
        check_number("batch_size", batch_size, 1)
        check_number("max_new_tokens", max_new_tokens, 1)
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        encoded = [self.encode(prompt, max_new_tokens) for prompt in given]
        return list(self._answers(encoded, max_new_tokens, batch_size, settings))

    def _answers(
        self, encoded: list[list[int]], max_new_tokens: int, size: int, settings: dict[str, Any]
    ) -> Iterator[Generated]:
        for start in range(0, len(encoded), size):
            part = encoded[start : start + size]
            decoding = EarlyExitDecoding(self.policy, cache=self.cache)
            longest = max(map(len, part))
            ids = torch.full((len(part), longest), self._pad)
            mask = torch.zeros_like(ids)
            for row, one in enumerate(part):
                ids[row, longest - len(one) :] = torch.tensor(one)
                mask[row, longest - len(one) :] = 1
            out = self._generate(ids, mask, decoding, max_new_tokens, settings)
            assert decoding.exits is not None
            for row, exits in enumerate(decoding.exits.exit_layer):
                yield self._generated(out[row, longest:].tolist(), exits.tolist())

    @property
    def _pad(self) -> int:
        pad: Any = self.tokenizer.pad_token_id
        return int(pad)

    def _generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        decoding: EarlyExitDecoding,
        max_new_tokens: int,
        settings: dict[str, Any],
    ) -> torch.Tensor:
        device = self.decoder.device
        ends = {"eos_token_id": self.tokenizer.eos_token_id} if self.task.ends else {}
        if not self.task.ends and self.tokenizer.bos_token_id is not None:
            # Where texts do not end with a token of their own, the next text begins with this one.
            ends = {"eos_token_id": [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]}
        out: torch.Tensor = self.decoder.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            custom_generate=decoding,
            **{**ends, "do_sample": False, **settings},
        )
        return out

    def _generated(self, ids: list[int], exits: list[int]) -> Generated:
        ids = ids[: sum(layer > 0 for layer in exits)]
        return Generated(
            generated_text=str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip(),
            tokens=[str(self.tokenizer.convert_ids_to_tokens(id)) for id in ids],
            exit_layers=exits[: len(ids)],
        )

    def stream(
        self,
        prompt: str,
        take: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
        *,
        max_new_tokens: int = 128,
        **settings: Any,
    ) -> Generated:
        """Answers a prompt, and hands over its text word by word.

        Args:
            prompt: what is asked.
            take: called with each further piece of text.
            stopped: asked after each token, whether to stop there.
            max_new_tokens: of the answer, at most.
            settings: see `__call__`.

        Raises:
            CeeGymError: if the prompt is empty or too long.
        """
        ids = torch.tensor([self.encode(prompt, max_new_tokens)])
        streamer = _Streamer(self.tokenizer, take)
        decoding = EarlyExitDecoding(self.policy, cache=self.cache, streamer=streamer)
        settings["stopping_criteria"] = [_Stopped(stopped)]
        out = self._generate(ids, torch.ones_like(ids), decoding, max_new_tokens, settings)
        assert decoding.exits is not None
        return self._generated(
            out[0, ids.shape[1] :].tolist(), decoding.exits.exit_layer[0].tolist()
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes decoder, tokenizer and policy, for `from_pretrained`.

        Raises:
            CeeGymError: if the directory holds something already.
        """
        directory = Path(directory)
        if directory.exists() and any(directory.iterdir()):
            raise CeeGymError(f"{directory} is not empty: give another directory")
        made = {"version": VERSION, "task": self.task.full_name}
        with written_into(directory) as unfinished:
            self.decoder.save_pretrained(unfinished)
            self.tokenizer.save_pretrained(unfinished)
            save_policy(self.policy, self.measured, unfinished)
            write_document(unfinished / GENERATION, made)

    def push_to_hub(self, name: str, *, private: bool | None = None) -> str:
        """Uploads what `save_pretrained` writes.

        Returns:
            Where it is.
        """
        from tempfile import TemporaryDirectory

        from huggingface_hub import create_repo, upload_folder

        place = create_repo(name, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            upload_folder(repo_id=place.repo_id, folder_path=folder)
        return str(place)


def never(decoder: MultiExitDecoder) -> ExitPolicy:
    """The policy that runs every token through all layers."""
    return full_depth(Sizes(decoder.num_layers, decoder.width, decoder.num_labels))


class _Streamer(TextStreamer):
    def __init__(self, tokenizer: Any, take: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._take = take

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._take(text)


class _Stopped(StoppingCriteria):
    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._stopped(), device=input_ids.device)
