"""An unmodified Hugging Face encoder with an exit head at every layer.

Training, recording, the live environment and the runtime all run its layers one at a time, through
one path that can stop after any layer, and read them by `cee_gym.exits.reader`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from cee_gym.backbones.families import Family, check_encoder, family_of
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.backbones.layers import LayerCall, layer_calls, make_shell
from cee_gym.backbones.trial import try_layers
from cee_gym.backbones.weights import check_backbone_loaded, check_loaded
from cee_gym.documents import written_into
from cee_gym.errors import BackboneError, first_line, unreachable_backbone
from cee_gym.exits.reader import ClassifierExit, Scale, TanhPooler

Pooler = Literal["scaled", "shared", "per_layer"]


class MultiExitConfig(PreTrainedConfig):
    """Configuration of a `MultiExitModel`.

    Args:
        backbone_config: the configuration of the encoder, as an object or a dict.
        pooler: `"shared"`, a linear layer and tanh, one for all layers as in ConsistentEE, or
            `"per_layer"`; `"scaled"`, a factor and an offset for each feature of each layer.
        pooling: what the pooler reads: the hidden state of the `"first"` token, as in ConsistentEE,
            or the `"mean"` over all tokens.
        exit_dropout: dropout between pooled state and classifier, in training.
        max_tokens: in tokens; longer texts are cut.
        task: the name of the task it was trained for.
        pair: whether it classifies pairs of texts.
        first_number: the number of the first class in data that numbers the classes of the task;
            None where that is not known.
        columns: the names of the columns `text`, `label` and, for pairs, `pair` in text of one's
            own; None where the task says them. With columns, data does not number its classes.
        family: the fields of the backbone's `Family` when the exits were put on it; by default
            what is known of it now.
        temperatures: L numbers that the logits were divided by; the heads hold that already. None
            where they were not calibrated.
        **kwargs: as for every configuration, `id2label` among them.
    """

    model_type = "cee-gym-multi-exit"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        pooler: Pooler = "shared",
        pooling: Literal["first", "mean"] = "first",
        exit_dropout: float = 0.1,
        max_tokens: int = 128,
        task: str | None = None,
        pair: bool = False,
        first_number: int | None = None,
        columns: dict[str, str] | None = None,
        family: dict[str, Any] | None = None,
        temperatures: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            settings = dict(backbone_config)
            backbone_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        for name, value, known in (
            ("pooler", pooler, get_args(Pooler)),
            ("pooling", pooling, ("first", "mean")),
        ):
            if value not in known:
                raise BackboneError(
                    f"{name} {value!r} of a model with exits is unknown: use {' or '.join(known)}"
                )
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise BackboneError(f"max_tokens must be a whole number from 1 up, got {max_tokens!r}")
        self.backbone_config = backbone_config
        self.pooler = pooler
        self.pooling = pooling
        self.exit_dropout = exit_dropout
        self.max_tokens = max_tokens
        self.task = task
        self.pair = pair
        self.first_number = first_number
        self.columns = columns
        self.family = family
        self.temperatures = temperatures
        # Read before transformers does, for which "1" and "01" are one number.
        if isinstance(kwargs.get("id2label"), Mapping):
            _check_classes(kwargs["id2label"])
        super().__init__(**kwargs)

    @property
    def backbone_type(self) -> str:
        """The `model_type` of the backbone, such as `bert`."""
        return "unknown" if self.backbone_config is None else self.backbone_config.model_type

    @property
    def labels(self) -> list[str]:
        """The C class names, in the order of the logits.

        Raises:
            BackboneError: if `id2label` does not number them from 0 to C - 1, or is no text.
        """
        names: dict[Any, Any] = dict(self.id2label or {})
        _check_classes(names)
        return [names[number] for number in range(len(names))]


def _check_classes(names: Mapping[Any, Any]) -> None:
    """Refuses class names that are no text or not distinct, and numbers other than 0 to C - 1.

    Numbers may be text. In which order they stand says nothing: sorted as text, 10 comes before 2.
    """
    if not all(isinstance(name, str) for name in names.values()):
        raise BackboneError(
            f"id2label names classes that are no text: {', '.join(map(repr, names.values()))}"
        )
    if len(set(names.values())) < len(names):
        raise BackboneError(f"id2label gives two classes one name: {', '.join(names.values())}")
    if {str(number) for number in names} != {str(number) for number in range(len(names))}:
        raise BackboneError(
            f"id2label numbers {len(names)} classes as {', '.join(sorted(map(str, names)))}: "
            f"number them from 0 to {len(names) - 1}"
        )


@dataclass
class MultiExitOutput(ModelOutput):
    """What all L exits give.

    Attributes:
        states: `[B, L, H]`, the pooled hidden state of each layer.
        logits: `[B, L, C]`, the class logits of each layer.
    """

    states: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class MultiExitModel(PreTrainedModel):
    """A backbone, poolers and L exit heads.

    `cee_gym.exits.reader.ClassifierExit` says what state and logits of a layer are. Backbones whose
    last layer is followed by a norm (ModernBERT) have that norm applied to every layer's hidden
    states first.

    Attributes:
        backbone: the encoder.
        poolers: one `TanhPooler`, or L of them, or L of `Scale`.
        heads: L of `nn.Linear(H, C)`.

    Raises:
        BackboneError: if the backbone cannot carry exits, see `check_encoder`, or the classes are
            not numbered from 0.
    """

    config_class = MultiExitConfig
    config: MultiExitConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: MultiExitConfig, backbone: PreTrainedModel | None = None) -> None:
        assert config.backbone_config is not None
        check_encoder(config.backbone_config)
        labels = config.labels  # refused here where they are not numbered from 0
        super().__init__(config)
        if backbone is None:
            # Where it is left open transformers asks on the standard input whether to run code.
            backbone = AutoModel.from_config(config.backbone_config, trust_remote_code=False)
        if hasattr(backbone, "pooler"):
            backbone.pooler = None  # ours replaces it
        self.backbone = backbone
        family = family_of(backbone.config) if config.family is None else Family(**config.family)
        # In tuples, so that shared modules are not registered, and saved, a second time.
        self._norm = (family.norm_of(backbone),)
        self._shell = (make_shell(backbone, family),)
        width = int(backbone.config.hidden_size)
        depth = int(backbone.config.num_hidden_layers)
        self.poolers = nn.ModuleList(
            Scale(width) if config.pooler == "scaled" else TanhPooler(width, width)
            for _ in range(1 if config.pooler == "shared" else depth)
        )
        self.heads = nn.ModuleList(nn.Linear(width, len(labels)) for _ in range(depth))
        self.dropout = nn.Dropout(config.exit_dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        labels: tuple[str, ...],
        *,
        pooler: Pooler = "shared",
        pooling: Literal["first", "mean"] = "first",
        max_tokens: int = 128,
        task: str | None = None,
        pair: bool = False,
        first_number: int | None = None,
        columns: dict[str, str] | None = None,
        seed: int = 0,
    ) -> Self:
        """Puts fresh exit heads on a pre-trained encoder.

        A pooler with tanh starts from the backbone's own where it has one (BERT, RoBERTa, ALBERT).

        Args:
            name_or_path: a hub name or a directory.
            labels: the C class names.
            pooler: see `MultiExitConfig`.
            pooling: of the first token, or the mean over all. Sentence encoders were trained with
                the mean: the first token of their early layers says next to nothing.
            max_tokens: in tokens; at most what the backbone takes.
            task: recorded in the configuration.
            pair: whether it is to classify pairs of texts; recorded too.
            first_number: the number of the first class in the task's data; recorded too.
            columns: of your own text; recorded too.
            seed: of the fresh weights.

        Raises:
            BackboneError: if it cannot be reached, weights do not belong to its configuration, or
                its layers cannot carry exits.
        """
        try:
            own_config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        except Exception as error:  # a damaged configuration brings about errors of any kind
            raise unreachable_backbone(name_or_path, error) from error
        check_encoder(own_config)
        try:
            backbone, loaded = AutoModel.from_pretrained(
                name_or_path,
                dtype=torch.float32,
                use_safetensors=True,  # the other format of weights is a pickle
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # as above
            raise unreachable_backbone(name_or_path, error) from error
        check_backbone_loaded(name_or_path, backbone, loaded)
        family = family_of(backbone.config)
        try_layers(backbone, family)
        attention = backbone.config._attn_implementation
        config = MultiExitConfig(
            backbone_config=backbone.config,
            pooler=pooler,
            pooling=pooling,
            max_tokens=min(max_tokens, _most_tokens(backbone) or max_tokens),
            task=task,
            pair=pair,
            first_number=first_number,
            columns=columns,
            family=asdict(family),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        # A new configuration names no implementation yet, and passes that on to the backbone's.
        config._attn_implementation = attention
        own = getattr(backbone, "pooler", None)
        if any(name.startswith("pooler.") for name in loaded["missing_keys"]):
            own = None  # not in the checkpoint: these are random weights that no seed was given for
        own = getattr(own, "dense", own)  # ALBERT's pooler is the linear layer itself
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(config, backbone)
            # post_init leaves modules alone that a loaded backbone brought along; ours are fresh.
            for linear in (*model.poolers, *model.heads):
                model._init_weights(linear)
        if own is not None and pooler != "scaled":
            for linear in model.poolers:
                linear.load_state_dict(own.state_dict())
        return model

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.heads)

    @property
    def width(self) -> int:
        """H."""
        return int(self.backbone.config.hidden_size)

    @property
    def num_labels(self) -> int:
        """C."""
        return len(self.labels)

    @property
    def labels(self) -> list[str]:
        """The C class names, in the order of the logits."""
        return self.config.labels

    @property
    def fingerprint(self) -> str:
        """Names the weights; all of them are read each time."""
        return fingerprint(self)

    @property
    def exit_layers(self) -> range:
        """All of them."""
        return range(1, self.num_layers + 1)

    @property
    def exits(self) -> list[ClassifierExit]:
        """What reads each of the L layers."""
        mean = self.config.pooling == "mean"
        poolers = [*self.poolers] * (1 if len(self.poolers) > 1 else len(self.heads))
        return [
            ClassifierExit(self._norm[0], mean, pooler, self.dropout, head)
            for pooler, head in zip(poolers, self.heads, strict=True)
        ]

    @torch.no_grad()
    def divide_logits(self, temperatures: torch.Tensor) -> None:
        """Divides the logits of each exit by its temperature, for good: what it predicts stays.

        Args:
            temperatures: above 0, `[L]`. They are multiplied with those it has.
        """
        for head, temperature in zip(self.heads, temperatures, strict=True):
            for parameter in head.parameters():
                parameter.div_(temperature)
        before = torch.tensor(self.config.temperatures or [1.0])
        self.config.temperatures = (before * temperatures.cpu()).tolist()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers has it, each file whole, and to be read by whoever may read the rest."""
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with written_into(save_directory) as unfinished:
            super().save_pretrained(unfinished, *args, **kwargs)

    def begin(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[LayerCall]]:
        """Everything the backbone does before its first layer; see `EarlyExitModel`."""
        return layer_calls(self._shell[0], inputs)

    def exit(
        self, hidden: torch.Tensor, layer: int, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """State and class logits of one layer.

        Args:
            hidden: `[B, T, H]`, the output of that layer.
            layer: from 1.
            attention_mask: `[B, T]`, 0 at padding.

        Returns:
            The pooled state `[B, H]` and the logits `[B, C]`.
        """
        reader = self.exits[layer - 1]
        return reader(hidden, reader.weights(attention_mask, hidden.dtype))

    def forward(self, **inputs: torch.Tensor) -> MultiExitOutput:
        """Runs all layers.

        Args:
            **inputs: as for `begin`.
        """
        hidden, layers = self.begin(inputs)
        readers, read = self.exits, []
        weights = readers[0].weights(inputs["attention_mask"], hidden.dtype)
        for layer, reader in zip(layers, readers, strict=True):
            hidden = layer(hidden)
            read.append(reader(hidden, weights))
        states, logits = zip(*read, strict=True)
        return MultiExitOutput(states=torch.stack(states, dim=1), logits=torch.stack(logits, dim=1))


def load_model(
    name_or_path: str | Path, dtype: torch.dtype | Literal["auto"] = "auto"
) -> MultiExitModel:
    """Loads a `MultiExitModel`, with all its weights and from safetensors only.

    Args:
        name_or_path: a directory or a hub name.
        dtype: of the weights; by default as they are stored.

    Raises:
        BackboneError: if there is none, or weights do not belong to its configuration.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        if not isinstance(config, MultiExitConfig):
            if (Path(name_or_path) / "exits.json").is_file():
                raise BackboneError(
                    f"the model at {name_or_path} is a decoder, which generates text and does not "
                    "classify it: use cee-gym generate or serve"
                )
            raise BackboneError(
                f"the model at {name_or_path} is of type {config.model_type} and has no exits: "
                "give one that cee-gym has trained"
            )
        found: Any = MultiExitModel.from_pretrained(
            name_or_path,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except BackboneError:
        raise
    except Exception as error:  # damaged files bring about errors of any kind
        raise BackboneError(f"there is no model at {name_or_path}: {first_line(error)}") from error
    model, loaded = found
    check_loaded(name_or_path, loaded)
    assert isinstance(model, MultiExitModel)
    return model


def _most_tokens(backbone: PreTrainedModel) -> int | None:
    """How long a text its positions allow, where they are limited."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from after the number of its padding token.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    return getattr(backbone.config, "max_position_embeddings", None)


AutoConfig.register(MultiExitConfig.model_type, MultiExitConfig)
