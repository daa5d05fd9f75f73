"""The settings of a recording and of a training run."""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

from cee_gym.errors import CeeGymError, check_number
from cee_gym.settings import MOST_SEED
from cee_gym.training.partition import PolicyData

WarmUpObjective = Literal["weighted_joint", "two_stage", "alternating"]
Recipe = Literal["probe", "finetune", "paper"]


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast.

    AdamW with linear decay.

    Attributes:
        epochs: passes over the rows.
        batch_size: rows an update.
        learning_rate: at the start; decays linearly to 0.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        warmup_ratio: share of the updates in which the rate rises to its height; by default 0.1
            where exits begin as probes, else 0, as in the paper's scripts.
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
    """How a backbone is warmed up and recorded.

    Attributes:
        recipe: how exits are made. `probe`: the backbone stays as it is, and each exit is a
            logistic regression on one layer's standardised states. `finetune`: all is trained on
            from there. `paper`: all is trained from fresh heads behind one shared pooler, and the
            logits are not calibrated. By default `probe` and `finetune` are both made, and kept is
            the one whose calibrated exits have the lower mean cross-entropy on text their backbone
            was not fitted to. A backbone that has exits keeps them.
        policy_data: which data the policy sees: `held_out`, `cross_fit` or `fitted`; see
            `cee_gym.training.partition`.
        held_out: share of train the policy learns on, with `held_out`.
        calibration: share of train that thresholds are chosen on.
        folds: number of backbones, with `cross_fit`.
        pooler: of recipe `paper`, `shared` by all layers, the default, or `per_layer`. Those of
            the others are `scaled`: each layer's states, standardised. A backbone that has exits
            keeps its own pooler, pooling and max_tokens.
        pooling: the state is of the `first` token, as in the paper, or the `mean` over tokens. By
            default whichever serves the probes better, judged by cross-validation; `first` in
            recipe `paper`.
        max_tokens: longer texts are cut; by default 128.
        states: how recorded states are stored.
        precision: of training: float32 (`no`) or `bf16`. Recording always runs in float32.
        seed: of partition, weights, batches and dropout.
        objective: of the warm-up. `alternating`: the last exit at odd steps, the sum of all at even
            ones (BERxiT), the default. `weighted_joint`: `sum_l l*CE_l / sum_l l`, the default of
            recipe `paper`. `two_stage`: first backbone and last exit, then, with these frozen, the
            others (DeeBERT, with pooler `per_layer`). A backbone that has exits is not warmed up.
        warm_up: of the training before there is a policy; of each stage where there are two.
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
    """How exits of a decoder are made; for generation only.

    Attributes:
        exits: the layers with an exit, the last among them; about eight, evenly spaced, by default.
        adapter_rank: of the adapter before the norm and LM head of each exit; 0 for none.
        adapters: of their training.
        loss: what exits learn: to say what the last layer says (`kl`), or the text (the paper's
            `cross_entropy`).
        lora_rank: of the LoRA that a backbone phase trains; 0 trains all weights.
        target: when an exit is right: where it says what the full model says (`full_depth`), or
            what the text says (`gold`).
        rows: use at most so many texts of train, and a quarter as many of dev.
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
        check_number("adapter_rank", self.adapter_rank, 0)
        check_number("lora_rank", self.lora_rank, 0)
        if self.rows is not None:
            check_number("rows", self.rows, 8)
        self.adapters.check("adapters")


@dataclass(frozen=True)
class AlternationConfig:
    """The rounds after the first policy phase.

    Attributes:
        rounds: how often backbone and policy are trained again; 0 trains a policy only.
        backbone_phase: how long and how fast it trains.
        backbone_loss: cross-entropy at the exit the policy draws (`sampled`), or in expectation
            (`expected`).
        memorized_layer: computed `once`, from the first recording, or in `each_round`.
        phases: policy and backbone `in_turn`, or `together` in one phase, followed by a policy
            phase.
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
