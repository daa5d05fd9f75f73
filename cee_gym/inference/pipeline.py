"""Texts to labels, in the manner of transformers' text-classification pipeline.

pipeline = EarlyExitPipeline.from_pretrained("runs/one")
pipeline("a gripping film")  # [{"label": "positive", "score": 0.98, "exit_layer": 2}]
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from cee_gym.backbones.encoding import check_tokenizer
from cee_gym.errors import CeeGymError, check_number
from cee_gym.exits.classifier import MultiExitModel
from cee_gym.inference.pretrained import Measured, Pretrained, load, save
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import Speed
from cee_gym.progress import show_progress
from cee_gym.runs import is_run

if TYPE_CHECKING:
    from cee_gym.onnx.model import OnnxModel

# A text, or `{"text": ..., "text_pair": ...}`; the rows of a data set may have other columns.
Text = str | Mapping[str, Any]
# What the tokenizer gives of one text, without padding: `input_ids` and the like.
Encoded = dict[str, list[int]]
# `{"label": str, "score": float, "exit_layer": int}`, with `"truncated": True` where the text was
# cut, or a list of them where `top_k` is not 1.
Result = Any


class Truncated(Encoded):
    """The token ids of a text that was too long, and was cut."""


WINDOW = 16  # batches that a stream reads ahead, to put texts of like length together


class EarlyExitPipeline:
    """A model, its tokenizer and an exit policy.

    Any number of threads may call one pipeline, as long as nobody else uses its tokenizer.

    Attributes:
        model: in eval mode; in PyTorch, or in ONNX Runtime.
        tokenizer: of the model.
        policy: decides where to leave.
        runtime: runs batches.
        measured: what is known about the policy.

    Args:
        model: classifies.
        tokenizer: of the model.
        policy: decides where to leave.
        batch_size: texts run together.
        device: to put the model on; by default it stays where it is.
        measured: what is known about the policy: its speeds, and what `save_pretrained` is to write
            down.

    Raises:
        CeeGymError: if the policy was learned on another model or has no speed yet (see
            `EarlyExitRuntime`), or a number is out of range.
        BackboneError: if the tokenizer does not fit the model, or texts cannot be taken out of what
            the layers are given.
    """

    def __init__(
        self,
        model: "MultiExitModel | OnnxModel",
        tokenizer: PreTrainedTokenizerBase,
        policy: ExitPolicy,
        *,
        batch_size: int = 32,
        device: torch.device | str | None = None,
        measured: Measured | None = None,
    ) -> None:
        check_number("batch_size", batch_size, 1, 2**20)
        if isinstance(model, MultiExitModel):
            check_tokenizer(tokenizer, model.backbone, pair=model.config.pair)
        if device is not None:
            model.to(torch.device(device))  # type: ignore[arg-type]
        self.model = model
        self.tokenizer = tokenizer
        self.runtime = EarlyExitRuntime(self.model, policy)
        self._batch_size = batch_size
        self.measured = measured or Measured()
        # A fast tokenizer keeps truncation and padding as state, and refuses to change it while
        # another thread is in it.
        self._lock = Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        *,
        at: str | None = None,
        threshold: float | None = None,
        alpha: float | None = None,
        saved_layers: float | None = None,
        points_lost: float | None = None,
        batch_size: int = 32,
        device: torch.device | str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Loads what `save_pretrained`, `cee-gym train --backbone` or `cee-gym export` wrote.

        Only JSON and safetensors are read; no code of others is run.

        Args:
            name_or_directory: a saved directory, a run (its newest complete round), an exported
                directory, which runs in ONNX Runtime, or a name on the hub.
            at: an operating point that was kept with it, by name; see `cee-gym evaluate`. At most
                one of this and the next four may be given; without one it is the policy's own.
            threshold: leave above this score.
            alpha: the price of one layer, for a policy that was learned for a range of prices.
            saved_layers: the slowest speed that saves this share of the layers on calibration.
            points_lost: the fastest speed that loses so many points of accuracy on calibration.
            batch_size: texts run together.
            device: by default the accelerator if there is one, and the CPU if not. ONNX Runtime
                takes the CPU only.
            revision: of the hub's: a branch, a tag or a commit.

        Raises:
            CeeGymError: if there is no such model or policy, they do not belong together, or the
                speed is not to be had.
        """
        speed = Speed(at, threshold, alpha, saved_layers, points_lost)
        found = load(name_or_directory, speed, revision=revision)
        if device is None and isinstance(found.model, MultiExitModel):
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        return cls(
            found.model,
            found.tokenizer,
            found.policy,
            batch_size=batch_size,
            device=device,
            measured=found.measured,
        )

    def __repr__(self) -> str:
        config, policy = self.model.config, self.policy
        return (
            f"{type(self).__name__}({config.task or 'text classification'}: "
            f"{', '.join(self.model.labels)}; {config.backbone_type}, "
            f"{self.model.num_layers} layers on {self.model.device}; {policy.name} policy, "
            f"threshold {policy.threshold:.4g})"
        )

    @property
    def policy(self) -> ExitPolicy:
        """Decides where to leave."""
        return self.runtime.policy

    def at(self, speed: Speed) -> Self:
        """The same model, which is shared, under its policy at another speed.

        Raises:
            CeeGymError: if the speed is not available.
        """
        twin = copy.copy(self)
        policy, twin.measured = self.measured.at(speed, self.policy)
        twin.runtime = self.runtime.at(policy)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = Lock()  # of this process, and of this copy of the tokenizer

    def __copy__(self) -> Self:
        # Both use one tokenizer, so they share its lock too.
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def save_pretrained(self, directory: str | Path, *, name: str | None = None) -> None:
        """Writes model, tokenizer, policy and a model card.

        A pipeline that comes from a run is measured on the run's dev split first.

        Args:
            directory: files of these names in it are written over.
            name: for the card; by default that of the directory.

        Raises:
            CeeGymError: if it is the directory of a run, whose config.json would be lost; if the
                model is an exported one; or if the weights were changed since, which casting them
                does too, so that the policy would be refused when this is loaded.
        """
        directory = Path(directory)
        if not isinstance(self.model, MultiExitModel):
            raise CeeGymError(f"an exported model is saved already: copy {self.model.directory}")
        if self.policy.model not in (None, self.model.fingerprint):
            raise CeeGymError(
                f"the weights of the model, now {self.model.dtype}, are not those that its policy "
                "was learned on: save it before they are changed, and cast them after loading"
            )
        if is_run(directory):
            raise CeeGymError(f"{directory} is the directory of a run: save to one of its own")
        directory.mkdir(parents=True, exist_ok=True)
        with self._lock:
            save(
                Pretrained(self.model, self.tokenizer, self.policy, self.measured),
                directory,
                name or directory.absolute().name,
            )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload with cee-gym",
    ) -> str:
        """Uploads what `save_pretrained` writes; gives the address of the commit.

        Args:
            repo_id: `NAME` or `OWNER/NAME`; made if it is not there.
            private: where it is made.
            token: by default that of `hf auth login`.
            commit_message: of the upload.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as directory:
            self.save_pretrained(directory, name=repo_id)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=directory, commit_message=commit_message
            )
        return commit.commit_url

    def __call__(
        self,
        texts: Text | Iterable[Text],
        *,
        truncation: bool = True,
        top_k: int | None = 1,
        progress_bar: bool = False,
    ) -> list[Result] | Iterator[Result]:
        """Classifies texts.

        Args:
            texts: a text, or several. A text is a str, or a dict with `text` and `text_pair`.
            truncation: cut texts that are too long, as training does; if not, refuse them.
            top_k: how many classes to tell, most probable first; None for all. Where it is not 1
                the result of each text is a list.
            progress_bar: show progress, and time left where the number of texts is known.

        Returns:
            `label`, `score` (its probability, as the exit head has it), `exit_layer` (from 1) and,
            where the text was cut, `truncated`: a list for one text and for a list or tuple of
            them; for anything else that is iterable, such as a generator or a `datasets.Dataset`,
            what `stream` gives.

        Raises:
            CeeGymError: if one of a list is empty, too long or no text; says which.
        """
        single = isinstance(texts, str | Mapping)
        if not single and not isinstance(texts, list | tuple):
            return self.stream(texts, truncation=truncation, top_k=top_k, progress_bar=progress_bar)
        given: Sequence[Any] = [texts] if single else texts  # type: ignore[assignment]
        encoded: list[Encoded] = []
        for number, one in enumerate(self.encode(given, truncation=truncation)):
            if isinstance(one, CeeGymError):
                raise one if single else CeeGymError(f"texts[{number}]: {one}")
            encoded.append(one)
        with show_progress(total=len(encoded), unit="text", disable=not progress_bar) as progress:
            results = self._run_sorted(encoded, top_k, progress)
        return results[0] if single and top_k != 1 else results

    def stream(
        self,
        texts: Iterable[Text | CeeGymError],
        *,
        truncation: bool = True,
        top_k: int | None = 1,
        progress_bar: bool = False,
    ) -> Iterator[Result]:
        """Classifies texts in constant memory; results are in their order.

        16 batches are read ahead, to put texts of like length together: the first result comes
        after as many texts, or at their end. What cannot be classified gives `{"error": ...}` in
        its place, and the others go on.

        Args:
            texts: as for a call. A `CeeGymError` among them is passed on as such a result.
            truncation: cut texts that are too long, as training does; if not, refuse them.
            top_k: how many classes to tell, see the call.
            progress_bar: show progress.
        """
        total = len(texts) if isinstance(texts, Sized) else None
        with show_progress(total=total, unit="text", disable=not progress_bar) as progress:
            remaining = iter(texts)
            while window := list(islice(remaining, self._batch_size * WINDOW)):
                encoded = self.encode(window, truncation=truncation)
                good = [one for one in encoded if not isinstance(one, CeeGymError)]
                results = iter(self._run_sorted(good, top_k, progress))
                for one in encoded:
                    if isinstance(one, CeeGymError):
                        progress.update()
                        yield {"error": str(one)}
                    else:
                        yield next(results)

    def encode(
        self, texts: Sequence[Text | CeeGymError], *, truncation: bool = True
    ) -> list[Encoded | CeeGymError]:
        """Token ids of each text, or what is wrong with it.

        Args:
            texts: as for `stream`.
            truncation: cut texts that are too long, into `Truncated`; if not, refuse them.
        """
        read = [self._read(text) for text in texts]
        encoded: list[Encoded | CeeGymError] = [
            one if isinstance(one, CeeGymError) else {} for one in read
        ]
        for with_pair in (False, True):
            rows = [
                row
                for row, one in enumerate(read)
                if not isinstance(one, CeeGymError) and (len(one) == 2) == with_pair
            ]
            if rows:
                columns = zip(*(read[row] for row in rows), strict=True)
                for row, one in zip(rows, self._tokens(columns, truncation), strict=True):
                    encoded[row] = one
        return encoded

    def run(self, encoded: Sequence[Encoded], *, top_k: int | None = 1) -> list[Result]:
        """The results of one batch.

        Args:
            encoded: the token ids of each text, as `encode` gives them.
            top_k: how many classes to tell, see the call.
        """
        if top_k is not None:
            check_number("top_k", top_k, 1)
        columns = {name: [one[name] for one in encoded] for name in encoded[0]}
        with self._lock:
            batch = self.tokenizer.pad(columns, padding_side="right", return_tensors="pt")
        exits = self.runtime(dict(batch))
        scores = torch.from_numpy(exits.logits).softmax(dim=1)
        count = scores.shape[1] if top_k is None else min(top_k, scores.shape[1])
        best = scores.topk(count)
        labels = self.model.labels
        results = [
            [
                {"label": labels[number], "score": score, "exit_layer": layer}
                | ({"truncated": True} if isinstance(one, Truncated) else {})
                for score, number in zip(of_text, numbers, strict=True)
            ]
            for one, of_text, numbers, layer in zip(
                encoded,
                best.values.tolist(),
                best.indices.tolist(),
                exits.exit_layer.tolist(),
                strict=True,
            )
        ]
        return [result[0] for result in results] if top_k == 1 else list(results)

    def _run_sorted(
        self, encoded: Sequence[Encoded], top_k: int | None, progress: "tqdm[Any]"
    ) -> list[Result]:
        """The results in the order of the texts, run in batches of like length."""
        order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]["input_ids"]))
        results: list[Result] = [None] * len(encoded)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            found = self.run([encoded[row] for row in rows], top_k=top_k)
            for row, result in zip(rows, found, strict=True):
                results[row] = result
            progress.update(len(rows))
        return results

    def _read(self, given: Any) -> tuple[str, ...] | CeeGymError:
        """The text, or the two, of one input."""
        if isinstance(given, CeeGymError):
            return given
        texts = {"text": given}
        if isinstance(given, Mapping):
            if "text" not in given:
                return CeeGymError(f"there is no 'text' among {', '.join(map(str, given))}")
            texts = {name: given[name] for name in ("text", "text_pair") if name in given}
        if texts.get("text_pair", "") is None:
            del texts["text_pair"]
        for name, text in texts.items():
            if not isinstance(text, str):
                return CeeGymError(f"{name} is not a str but {type(text).__name__}")
            if not text.strip():
                return CeeGymError(f"{name} is empty")
            try:
                text.encode()
            except UnicodeEncodeError:
                return CeeGymError(f"{name} is not valid UTF-8")
        if self.model.config.pair and "text_pair" not in texts:
            return CeeGymError("this model classifies pairs of texts: give a text_pair too")
        return tuple(texts.values())

    def _tokens(
        self, columns: Iterable[Sequence[str]], truncation: bool
    ) -> Iterator[Encoded | CeeGymError]:
        """Token ids, given all first texts and perhaps all second ones."""
        longest = self.model.config.max_tokens
        texts = [list(column) for column in columns]
        with self._lock:
            tokens = self.tokenizer(*texts, verbose=False)
            lengths = [len(ids) for ids in tokens["input_ids"]]
            too_long = [row for row, length in enumerate(lengths) if length > longest]
            cut = {}
            if truncation and too_long:
                again = [[column[row] for row in too_long] for column in texts]
                cut = self.tokenizer(*again, truncation=True, max_length=longest, verbose=False)
        cut_rows = {row: place for place, row in enumerate(too_long)} if cut else {}
        for row, length in enumerate(lengths):
            if length <= longest:
                yield {name: values[row] for name, values in tokens.items()}
            elif row in cut_rows:
                yield Truncated({name: values[cut_rows[row]] for name, values in cut.items()})
            else:
                yield CeeGymError(
                    f"the text has {length} tokens and the model takes {longest}: shorten it, or "
                    "have it cut by truncation"
                )
