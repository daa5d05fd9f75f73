"""What the phases that touch text and backbone share."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoConfig, PreTrainedTokenizerBase

from cee_gym import processes
from cee_gym.backbones.encoding import EncodedText, check_tokenizer, load_tokenizer
from cee_gym.backbones.families import check_encoder
from cee_gym.documents import publish
from cee_gym.errors import BackboneError, unreachable_backbone
from cee_gym.exits import MultiExitConfig, MultiExitModel, load_model
from cee_gym.tasks import Task, load_splits
from cee_gym.training.config import Recipe, RecordConfig, WarmUpObjective, refuse_changed
from cee_gym.training.partition import Partition, partition

if TYPE_CHECKING:
    from cee_gym.agents.base import Agent

OF_EXITS = ("pooler", "pooling", "max_tokens")  # settings that become part of the model


@dataclass(frozen=True)
class Setup:
    """Text, backbone, and how they are warmed up and recorded.

    Attributes:
        task: whose text.
        backbone: hub name or path of an encoder, or of a `MultiExitModel`, whose heads are then
            kept.
        splits: the text.
        config: how to warm up and record.

    Raises:
        BackboneError: if the backbone cannot be reached or cannot carry exits, or if it has exits
            for other classes than the task's or other than those asked for.
        CeeGymError: if it has exits and a warm-up was asked for.
    """

    task: Task
    backbone: str
    splits: dict[str, Dataset]
    config: RecordConfig

    def __post_init__(self) -> None:
        if self._exits is None:
            return
        if self.config.recipe is not None:
            raise BackboneError(
                f"{self.backbone} keeps the exits it has: leave out recipe {self.config.recipe}, "
                "or give an encoder without exits"
            )
        if self._exits.labels != list(self.task.labels):
            raise BackboneError(
                f"{self.backbone} has exits for the classes {', '.join(self._exits.labels)}, in "
                f"this order, and task {self.task.name} has {', '.join(self.task.labels)}: give a "
                "backbone whose classes are the task's, or one without exits"
            )
        if self._exits.pair != (self.task.pair is not None):
            about = {True: "pairs of texts", False: "single texts"}
            raise BackboneError(
                f"{self.backbone} has exits for {about[self._exits.pair]}, and task "
                f"{self.task.name} is about {about[not self._exits.pair]}: give a backbone without "
                "exits"
            )
        own = {name: getattr(self._exits, name) for name in OF_EXITS} | {"objective": "unknown"}
        for name, value in own.items():
            asked = getattr(self.config, name)
            if asked not in (None, value):
                raise BackboneError(
                    f"{self.backbone} keeps the exits it has, whose {name} is {value}: leave out "
                    f"{name} {asked}, or give an encoder without exits"
                )
        refuse_changed(
            self.config, ["warm_up"], f"an encoder without exits: leave it out with {self.backbone}"
        )

    @classmethod
    def load(cls, task: Task, backbone: str, data: str | None, config: RecordConfig) -> "Setup":
        """Loads the text.

        Raises:
            DataError: if it cannot be reached or does not fit the task.
            BackboneError: as the class says.
        """
        return cls(task, backbone, load_splits(task, data), config)

    @cached_property
    def text_fingerprint(self) -> str:
        """Names the text and its labels: equal for two setups if and only if these are."""
        digest = hashlib.sha256()
        for split, data in sorted(self.splits.items()):
            digest.update(json.dumps([split, data.to_dict()], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def partition(self) -> Partition:
        """How the rows of train are shared out."""
        config = self.config
        return partition(
            len(self.splits["train"]),
            config.policy_data,
            held_out=config.held_out,
            calibration=config.calibration,
            folds=config.folds,
            seed=config.seed,
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's."""
        return self._reading[0]

    @property
    def max_tokens(self) -> int:
        """Where texts are cut: as asked for, or at the backbone's own limit."""
        return self._reading[1]

    @cached_property
    def _reading(self) -> tuple[PreTrainedTokenizerBase, int]:
        """The tokenizer, once it is known to fit the model, and the most tokens of a text."""
        tokenizer, model = load_tokenizer(self.backbone), self.initial_model()
        check_tokenizer(tokenizer, model.backbone, pair=model.config.pair)
        return tokenizer, model.config.max_tokens

    @cached_property
    def text(self) -> dict[str, EncodedText]:
        """The splits in token ids."""
        return {
            split: EncodedText(data, self.tokenizer, self.max_tokens)
            for split, data in self.splits.items()
        }

    @cached_property
    def accelerator(self) -> Accelerator:
        """The device and precision to train with."""
        processes.connect()
        return Accelerator(mixed_precision=self.config.precision)

    @cached_property
    def _exits(self) -> MultiExitConfig | None:
        """Of a backbone that is a `MultiExitModel` already."""
        try:
            config = AutoConfig.from_pretrained(self.backbone, trust_remote_code=False)
        except Exception as error:  # a damaged configuration brings about errors of any kind
            raise unreachable_backbone(self.backbone, error) from error
        if isinstance(config, MultiExitConfig):
            return config
        check_encoder(config)
        return None

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Which are made, of which one is kept; none where the backbone has exits."""
        if self._exits is not None:
            return ()
        return ("probe", "finetune") if self.config.recipe is None else (self.config.recipe,)

    @property
    def calibrates(self) -> bool:
        """Whether the exits are given temperatures."""
        return self.recipes not in ((), ("paper",))

    @property
    def objective(self) -> WarmUpObjective | None:
        """What the warm-up descends; None where there is none."""
        if self.recipes in ((), ("probe",)):
            return None
        return self.config.objective or (
            "weighted_joint" if self.config.recipe == "paper" else "alternating"
        )

    def initial_model(self) -> MultiExitModel:
        """The model before the warm-up; the same for every fold.

        Raises:
            BackboneError: if it cannot be loaded.
        """
        if self._exits is not None:
            return load_model(self.backbone, torch.float32)
        asked: dict[str, Any] = {
            name: value for name in OF_EXITS if (value := getattr(self.config, name)) is not None
        }
        if self.calibrates:
            asked["pooler"] = "scaled"
        return MultiExitModel.from_backbone(
            self.backbone,
            self.task.labels,
            task=self.task.name,
            pair=self.task.pair is not None,
            first_number=self.task.first_number,
            columns=self.task.columns if self.task.is_own else None,
            seed=self.config.seed,
            **asked,
        )

    def save(self, model: MultiExitModel, target: Path, agent: "Agent | None" = None) -> None:
        """Saves a model with its tokenizer, and perhaps an agent beside it, whole or not at all."""
        unfinished = target.with_name(f"{target.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        self.tokenizer.save_pretrained(unfinished)
        if agent is not None:
            agent.save(unfinished / "agent")
        publish(unfinished, target)

    def description(self, split: str) -> dict[str, object]:
        """What a trace of this split says about where it comes from."""
        return {
            "task": self.task.full_name,
            "split": split,
            "backbone": Path(self.backbone).name,
            "policy_data": self.config.policy_data,
            "seed": self.config.seed,
        }
