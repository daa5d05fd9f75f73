"""An unmodified Hugging Face encoder with an exit head at every layer.

Training, recording, the live environment and the runtime all run its layers one at a time, through one path
that can stop after any layer.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from cee_gym.errors import BackboneError
from cee_gym.models.layers import LayerCall, layer_calls, make_shell


class MultiExitConfig(PreTrainedConfig):
    """Configuration of a `MultiExitModel`.

    Args:
        backbone_config: the configuration of the encoder, as an object or a dict.
        pooler: `"shared"`, one for all layers as in ConsistentEE, or `"per_layer"`.
        exit_dropout: dropout between pooled state and classifier, in training.
        max_tokens: in tokens; longer texts are cut.
        task: the name of the task it was trained for.
        **kwargs: as for every configuration, `id2label` among them.
    """

    model_type = "cee-gym-multi-exit"
    sub_configs = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        pooler: Literal["shared", "per_layer"] = "shared",
        exit_dropout: float = 0.1,
        max_tokens: int = 128,
        task: str | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            settings = dict(backbone_config)
            backbone_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.backbone_config = backbone_config
        self.pooler = pooler
        self.exit_dropout = exit_dropout
        self.max_tokens = max_tokens
        self.task = task
        super().__init__(**kwargs)


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

    The state of layer t is `tanh(W h_t[first token] + b)`; the classifier of layer t reads it through dropout, the
    policy without (ConsistentEE, section 3). Backbones whose last layer is followed by a norm (ModernBERT) have that
    norm applied to every layer's hidden state first.

    Attributes:
        backbone: the encoder.
        poolers: one `nn.Linear(H, H)`, or L of them.
        heads: L of `nn.Linear(H, C)`.
    """

    config_class = MultiExitConfig
    config: MultiExitConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: MultiExitConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            backbone = AutoModel.from_config(config.backbone_config)
        if hasattr(backbone, "pooler"):
            backbone.pooler = None  # ours replaces it
        self.backbone = backbone
        # In a tuple, so that its shared modules are not registered, and saved, a second time.
        self._shell = (make_shell(backbone),)
        width, depth = config.backbone_config.hidden_size, config.backbone_config.num_hidden_layers
        poolers = depth if config.pooler == "per_layer" else 1
        self.poolers = nn.ModuleList(nn.Linear(width, width) for _ in range(poolers))
        self.heads = nn.ModuleList(nn.Linear(width, config.num_labels) for _ in range(depth))
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
        pooler: Literal["shared", "per_layer"] = "shared",
        max_tokens: int = 128,
        task: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Puts fresh exit heads on a pre-trained encoder.

        The pooler starts from the backbone's own where it has one (BERT, RoBERTa, ALBERT).

        Args:
            name_or_path: a hub name or a directory.
            labels: the C class names.
            pooler: one for all layers, or one per layer.
            max_tokens: in tokens; at most what the backbone takes.
            task: recorded in the configuration.
            seed: of the fresh weights.

        Raises:
            BackboneError: if it cannot be reached, or its layers cannot be found.
        """
        try:
            backbone = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BackboneError(
                f"backbone {name_or_path} cannot be loaded ({reason}): give a local directory, run this where the hub "
                "can be reached, or use an id that is recorded here (cee-gym envs)"
            ) from error
        limit = getattr(backbone.config, "max_position_embeddings", max_tokens)
        config = MultiExitConfig(
            backbone_config=backbone.config,
            pooler=pooler,
            max_tokens=min(max_tokens, limit),
            task=task,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        own = getattr(backbone, "pooler", None)
        own = getattr(own, "dense", own)  # ALBERT's pooler is the linear layer itself
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(config, backbone)
            # post_init leaves modules alone that a loaded backbone brought along; ours are fresh.
            for linear in (*model.poolers, *model.heads):
                model._init_weights(linear)
        if own is not None:
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
        return int(self.heads[0].in_features)

    @property
    def num_labels(self) -> int:
        """C."""
        return int(self.config.num_labels)

    def begin(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[LayerCall]]:
        """Everything the backbone does before its first layer.

        Args:
            inputs: `input_ids`, `attention_mask` and what else the backbone takes, `[B, T]`.

        Returns:
            The embedding output `[B, T, H]` and L functions, one per layer, from hidden states to hidden states.
        """
        return layer_calls(self._shell[0], inputs)

    def exit(self, hidden: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """State and class logits of one layer.

        Args:
            hidden: `[B, T, H]`, the output of that layer.
            layer: from 1.

        Returns:
            The pooled state `[B, H]` and the logits `[B, C]`.
        """
        first = hidden[:, 0]
        final_norm = getattr(self.backbone, "final_norm", None)
        if final_norm is not None:
            first = final_norm(first)
        pooler = self.poolers[layer - 1] if len(self.poolers) > 1 else self.poolers[0]
        state = torch.tanh(pooler(first))
        return state, self.heads[layer - 1](self.dropout(state))

    def forward(self, **inputs: torch.Tensor) -> MultiExitOutput:
        """Runs all layers.

        Args:
            **inputs: as for `begin`.
        """
        hidden, layers = self.begin(inputs)
        exits = []
        for number, layer in enumerate(layers, start=1):
            hidden = layer(hidden)
            exits.append(self.exit(hidden, number))
        states, logits = zip(*exits, strict=True)
        return MultiExitOutput(states=torch.stack(states, dim=1), logits=torch.stack(logits, dim=1))
