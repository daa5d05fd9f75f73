"""The settings of a recording and of a training run."""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

from cee_gym.errors import CeeGymError, check_number
from cee_gym.settings import MOST_SEED
from cee_gym.training.partition import PolicyData

WarmUpObjective = Literal["weighted_joint", "two_stage", "alternating"]
Recipe = Literal["probe", "finetune", "paper"]
MOST_RANK = 2**16  # wider than any model


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to train.

    Attributes:
        epochs: The number of passes over the rows.
        batch_size: The number of rows in one update.
        learning_rate: The learning rate at the start. It decays linearly to 0.
        weight_decay: The weight decay of AdamW.
        max_grad_norm: Gradients are clipped to this norm.
        warmup_ratio: The share of the updates in which the learning rate rises to its full value.
            By default it is 0.1 where the exits begin as probes, and 0 otherwise, as in the paper's
            scripts.
    """

    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_ratio: float | None = None

    def check(self, name: str) -> None:
        """Refuses settings out of range.

        Args:
            name: of the run, for the message.

        Raises:
            CeeGymError: naming the setting.
        """
        check_number(f"{name}.epochs", self.epochs, 0)
        check_number(f"{name}.batch_size", self.batch_size, 1)
        for setting in ("learning_rate", "weight_decay", "max_grad_norm"):
            check_number(f"{name}.{setting}", getattr(self, setting), 0)
        if self.warmup_ratio is not None:
            check_number(f"{name}.warmup_ratio", self.warmup_ratio, 0, 1)


def refuse_changed(config: Any, names: Iterable[str], why: str) -> None:
    """Refuses settings that differ from the usual ones where they would do nothing.

    Args:
        config: a dataclass whose settings all have a default.
        names: of the settings.
        why: what they are for, and what to do.

    Raises:
        CeeGymError: naming the setting and its value.
    """
    settings = {setting.name: setting for setting in fields(config)}
    for name in names:
        setting, value = settings[name], getattr(config, name)
        made = setting.default_factory
        usual = setting.default if made is MISSING else made()
        if value != usual:
            raise CeeGymError(f"{name} {value} is for {why}")


@dataclass(frozen=True)
class RecordConfig:
    """How the exits are trained and recorded.

    Attributes:
        recipe: How the exits are made. `probe`: The model stays as it is, and each exit is a
            logistic regression on the standardised states of one layer. `finetune`: Everything is
            trained from there. `paper`: Everything is trained from fresh heads behind one shared
            pooler, and the exits are not calibrated. By default both `probe` and `finetune` are
            made, and the one with the lower mean cross-entropy of its calibrated exits is kept,
            measured on rows that its model was not fitted to. A model that has exits already keeps
            them.
        policy_data: Which rows the policy learns on. `cross_fit`: all rows, each recorded by a
            model that was not fitted to it. `held_out`: a part of train that no model is fitted to.
            `fitted`: the rows that the model is fitted to, as in the paper.
        held_out: The share of train that the policy learns on, with `held_out`.
        calibration: The share of train that thresholds are chosen on.
        folds: The number of models, with `cross_fit`.
        pooler: With recipe `paper`, whether all layers share one pooler (`shared`, the default) or
            each has its own (`per_layer`). The other recipes standardise each layer's states
            instead. A model that has exits already keeps its pooler, pooling and longest text.
        pooling: Whether the state of a layer is that of the `first` token, as in the paper, or the
            `mean` over all tokens. By default cross-validation chooses what serves the probes
            better; recipe `paper` takes `first`.
        max_tokens: The longest text, in tokens; longer ones are cut. The default is 128.
        states: How recorded states are stored.
        precision: The precision of training: float32 (`no`) or `bf16`. Recording always runs in
            float32.
        seed: The seed of the split into parts, the weights, the batches and dropout.
        objective: The loss of the training before there is a policy. `alternating`: the last exit
            at odd steps, the sum of all exits at even steps (BERxiT); this is the default.
            `weighted_joint`: `sum_l l*CE_l / sum_l l`; this is the default of recipe `paper`.
            `two_stage`: first the model with its last exit, then the other exits while the rest is
            frozen (DeeBERT, with pooler `per_layer`). A model that has exits already is not
            trained.
        warm_up: The training before there is a policy; with two stages, each of them.
    """

    recipe: Recipe | None = None
    policy_data: PolicyData = "cross_fit"
    held_out: float = 0.3
    calibration: float = 0.15
    folds: int = 3
    pooler: Literal["shared", "per_layer"] | None = None
    pooling: Literal["first", "mean"] | None = None
    max_tokens: int | None = None
    states: Literal["float16", "float32"] = "float16"
    precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    objective: WarmUpObjective | None = None
    warm_up: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        check_number("held_out", self.held_out, 0, 1)
        check_number("calibration", self.calibration, 0, 1)
        check_number("folds", self.folds, 2, 1000)
        if self.max_tokens is not None:
            check_number("max_tokens", self.max_tokens, 1)
        check_number("seed", self.seed, 0, MOST_SEED)
        known = get_args(WarmUpObjective)
        if self.objective is not None and self.objective not in known:
            raise CeeGymError(f"objective must be one of {', '.join(known)}, got {self.objective}")
        self.warm_up.check("warm_up")
        if self.recipe not in (None, *get_args(Recipe)):
            raise CeeGymError(
                f"recipe must be one of {', '.join(get_args(Recipe))}, got {self.recipe!r}"
            )
        if self.recipe == "probe":
            refuse_changed(
                self,
                ["objective", "warm_up"],
                "training a backbone, which recipe probe leaves as it is: leave it out, or take "
                "recipe finetune",
            )
        if self.recipe != "paper":
            refuse_changed(self, ["pooler"], "recipe paper: leave it out, or give that recipe")
        for name, way in (("folds", "cross_fit"), ("held_out", "held_out")):
            if self.policy_data != way:
                refuse_changed(
                    self, [name], f"policy_data {way}: leave it out with {self.policy_data}"
                )


@dataclass(frozen=True)
class TokenConfig:
    """How the exits of a decoder are made. These options are for generation only.

    Attributes:
        exits: The layers with an exit. The last layer has to be among them. By default there are
            about eight, evenly spaced.
        adapter_rank: The rank of the adapter before the norm and the LM head of each exit; 0 for no
            adapter.
        adapters: The training of the adapters.
        loss: What the exits learn: to say what the last layer says (`kl`), or what the text says
            (`cross_entropy`, as in the paper).
        lora_rank: The rank of the LoRA that a backbone phase trains; 0 trains all weights.
        target: When an exit counts as right: where it says what the full model says (`full_depth`),
            or what the text says (`gold`).
        rows: Use at most this many texts of train, and a quarter as many of dev.
    """

    exits: tuple[int, ...] | None = None
    adapter_rank: int = 64
    adapters: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=6, batch_size=4, learning_rate=1e-2)
    )
    loss: Literal["kl", "cross_entropy"] = "kl"
    lora_rank: int = 0
    target: Literal["full_depth", "gold"] = "full_depth"
    rows: int | None = None

    def __post_init__(self) -> None:
        check_number("adapter_rank", self.adapter_rank, 0, MOST_RANK)
        check_number("lora_rank", self.lora_rank, 0, MOST_RANK)
        if self.rows is not None:
            check_number("rows", self.rows, 8)
        self.adapters.check("adapters")


@dataclass(frozen=True)
class AlternationConfig:
    """The rounds after the first policy phase.

    Attributes:
        rounds: How many times model and policy are trained again. 0 trains the policy only.
        backbone_phase: The training of the model in each round.
        backbone_loss: The loss of the model: the cross-entropy at the exit that the policy draws
            (`sampled`), or its expectation over the exits (`expected`).
        memorized_layer: Whether memorized layers are computed `once`, from the first recording, or
            in `each_round`.
        phases: Whether policy and model are trained `in_turn`, or `together` in one phase, which a
            policy phase follows.
    """

    rounds: int = 0
    backbone_phase: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=1, batch_size=16, learning_rate=2e-5)
    )
    backbone_loss: Literal["sampled", "expected"] = "sampled"
    memorized_layer: Literal["once", "each_round"] = "each_round"
    phases: Literal["in_turn", "together"] = "in_turn"

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, 0)
        self.backbone_phase.check("backbone_phase")
