"""What is known of each family of backbones, and which are refused and why.

A family is what transformers calls a `model_type`. One that is not in the table is tried as it is
(`cee_gym.backbones.trial`); `register_family` says what it needs beyond that.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from cee_gym.errors import BackboneError
from cee_gym.registry import Registry

# Ends messages that refuse a backbone.
GIVE_AN_ENCODER = "give an encoder, such as BERT, RoBERTa, DeBERTa, MPNet or ModernBERT"


@dataclass(frozen=True)
class Family:
    """How the models of one family differ from BERT.

    Attributes:
        norm: the path in the model of the norm that follows its last layer, if there is one. It is
            applied to the hidden states of every layer before they are read.
        tuples: whether layers return tuples that begin with the hidden states.
        positions: of arguments of the layers whose dimensions `cee_gym.backbones.rows` would
            misread: argument name -> the dimensions that are positions in the text. An argument
            without any is the same for all texts.
        causal: whether no token sees those after it.
    """

    norm: str | None = None
    tuples: bool = False
    positions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    causal: bool = False

    def norm_of(self, backbone: PreTrainedModel) -> nn.Module | None:
        """The norm that follows the last layer of a model of this family.

        Raises:
            BackboneError: if the model has no such module.
        """
        try:
            return None if self.norm is None else backbone.get_submodule(self.norm)
        except AttributeError:
            raise BackboneError(
                f"{type(backbone).__name__} has no {self.norm}: register its family with the path "
                "of the norm that follows its last layer"
            ) from None


FAMILIES: Registry[Family] = Registry("family of backbones")


def register_family(model_type: str, family: Family) -> None:
    """Tells what the models of one `model_type` need; replaces what the same module told before.

    Raises:
        CeeGymError: if another module, or cee-gym itself, has registered the family.
    """
    FAMILIES.add(model_type, family, sys._getframe(1).f_globals["__name__"])


def family_of(config: PreTrainedConfig) -> Family:
    """What is known of the family of a backbone; where nothing is, that it is like BERT."""
    return FAMILIES.get(config.model_type) if config.model_type in FAMILIES else Family()


def check_encoder(config: PreTrainedConfig) -> None:
    """Refuses backbones whose layers cannot each end in a classifier of the text.

    Args:
        config: of the backbone, before its weights are loaded.

    Raises:
        BackboneError: if it is a decoder or an encoder-decoder, has one layer, or its layers are to
            be run by flex_attention.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(
            f"{kind} is an encoder-decoder, and exits after its encoder's layers would be those of "
            f"half a model: {GIVE_AN_ENCODER}"
        )
    if family_of(config).causal or getattr(config, "is_decoder", False):
        raise causal(kind)
    if getattr(config, "num_hidden_layers", None) == 1:
        raise BackboneError(
            f"this {kind} has one layer, so that there is no layer to leave early at: give a "
            "backbone with at least two"
        )
    if getattr(config, "_attn_implementation", None) == "flex_attention":
        raise BackboneError(
            f"this {kind} runs its layers by flex_attention, from whose masks texts that have left "
            "cannot be taken: set attn_implementation to sdpa or eager"
        )


def causal(kind: str) -> BackboneError:
    """The error for a backbone that cannot classify a text by its first token."""
    return BackboneError(
        f"{kind} is a decoder, whose first token sees no other, so that exits could not tell one "
        f"text from another: {GIVE_AN_ENCODER}"
    )


for _kind in ("bert", "roberta", "xlm-roberta", "albert", "electra", "distilbert"):
    register_family(_kind, Family())
register_family("mpnet", Family(tuples=True))
for _kind in ("deberta", "deberta-v2"):
    # The distances between tokens [1, T, T], and a table of embeddings by distance.
    _positions = {"relative_pos": (1, 2), "rel_embeddings": ()}
    register_family(_kind, Family(tuples=True, positions=_positions))
register_family("modernbert", Family(norm="final_norm"))
register_family("eurobert", Family(norm="norm"))
register_family("esm", Family(norm="encoder.emb_layer_norm_after"))
register_family("roberta-prelayernorm", Family(norm="LayerNorm"))
for _kind in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text"):
    register_family(_kind, Family(norm="norm", causal=True))
register_family("opt", Family(norm="decoder.final_layer_norm", causal=True))
register_family("falcon", Family(norm="ln_f", tuples=True, causal=True))
register_family("gpt2", Family(norm="ln_f", causal=True))
register_family("gpt_neox", Family(norm="final_layer_norm", causal=True))
