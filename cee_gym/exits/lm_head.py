"""Exits of a decoder: its own final norm and LM head, read after some of its layers.

The states of early layers do not lie where the head expects them. A low-rank adapter for each exit
turns them there; a vocabulary matrix for each layer would cost more than the layers it saves.
"""

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StopStringCriteria,
)

from cee_gym.backbones.families import family_of
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.backbones.layers import LayerCall, layer_calls, make_shell
from cee_gym.backbones.weights import check_loaded
from cee_gym.documents import (
    read_document,
    refused_if_damaged,
    write_document,
    written_into,
)
from cee_gym.errors import BackboneError, CeeGymError, first_line, unreachable_backbone

FORMAT = "cee-gym exits"
VERSION = 1
EXITS, ADAPTERS = "exits.json", "exits.safetensors"
USUAL_EXITS = 8
GIVE_A_DECODER = "give a causal language model, such as Llama, Mistral, Qwen, Gemma or GPT-2"


def usual_depths(num_layers: int) -> tuple[int, ...]:
    """About eight layers, evenly spaced, the last among them.

    >>> usual_depths(5), usual_depths(30)
    ((1, 2, 3, 4, 5), (4, 8, 12, 15, 19, 23, 27, 30))
    """
    count = min(USUAL_EXITS, num_layers)
    return tuple(int(np.ceil(place * num_layers / count)) for place in range(1, count + 1))


class Adapter(nn.Module):
    """`x + up(down(x))`, where x is the state divided by its root mean square.

    The norm that follows does not see that division, so a fresh adapter, whose `up` is 0, changes
    nothing.

    Args:
        width: H.
        rank: the width between down and up.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """From `[..., H]` to `[..., H]`."""
        x = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)
        return x + self.up(self.down(x))


class MultiExitDecoder(nn.Module):
    """An unmodified causal language model that can be read after some of its layers.

    Args:
        backbone: any causal language model of transformers with a list of layers.
        depths: the layers with an exit, from 1, rising; the last layer is among them. By default
            about eight, evenly spaced.
        adapter_rank: of the adapter of each exit but the last; 0 for none.
        seed: of fresh adapters.

    Raises:
        BackboneError: if the model is no decoder, or its layers, run one after another, are not it.
        CeeGymError: if an argument is out of range.

    Attributes:
        backbone: the causal language model.
        depths: the layers with an exit.
        adapter_rank: of the adapters.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        depths: Sequence[int] | None = None,
        adapter_rank: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_decoder(backbone.config)
        total = int(backbone.config.num_hidden_layers)
        self.depths = tuple(usual_depths(total) if depths is None else depths)
        if list(self.depths) != sorted(set(self.depths)) or self.depths[-1:] != (total,):
            raise CeeGymError(
                f"exits must be rising layer numbers that end with the last layer, {total}, got "
                f"{' '.join(map(str, self.depths))}"
            )
        if len(self.depths) < 2 or self.depths[0] < 1:
            raise CeeGymError("there must be at least two exits, at layers from 1")
        if adapter_rank < 0:
            raise CeeGymError(f"adapter_rank must be from 0, got {adapter_rank}")
        self.backbone = backbone
        self.adapter_rank = adapter_rank
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.adapters = nn.ModuleList(
                Adapter(self.width, adapter_rank) if adapter_rank else nn.Identity()
                for _ in self.depths[:-1]
            )
        self._try()

    @classmethod
    def from_backbone(
        cls, name_or_path: str | Path, depths: Sequence[int] | None = None, **settings: Any
    ) -> Self:
        """Loads a causal language model, from a directory, the hub or a .gguf file.

        Raises:
            BackboneError: if it is not available, or carries no exits.
        """
        return cls(load_causal_lm(name_or_path), depths, **settings)

    @property
    def num_layers(self) -> int:
        """L, the number of exits."""
        return len(self.depths)

    @property
    def width(self) -> int:
        """H, of the states."""
        return int(self.backbone.config.hidden_size)

    @property
    def num_labels(self) -> int:
        """The size of the vocabulary, as the LM head has it."""
        return int(self.backbone.get_output_embeddings().weight.shape[0])

    @property
    def context(self) -> int | None:
        """The most tokens of a text; None where the configuration does not say."""
        return getattr(self.backbone.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Where its inputs are to be."""
        return self.backbone.device

    @cached_property
    def fingerprint(self) -> str:
        """Names its weights, as they are when it is first asked for."""
        return fingerprint(self)

    @cached_property
    def _shell(self) -> tuple[nn.Module]:
        # In a tuple, so that the shell is not registered as a submodule.
        return (make_shell(_base(self.backbone), family_of(self.backbone.config)),)

    @property
    def _norm(self) -> nn.Module:
        norm = family_of(self.backbone.config).norm_of(_base(self.backbone))
        return nn.Identity() if norm is None else norm

    def begin(self, **inputs: Any) -> tuple[torch.Tensor, list[LayerCall]]:
        """Everything before the first layer.

        Args:
            inputs: what the backbone takes: `input_ids` `[B, T]`, and perhaps `attention_mask`,
                `position_ids`, `past_key_values`.

        Returns:
            The embedding output `[B, T, H]`, and a function for each layer.
        """
        inputs.setdefault("use_cache", inputs.get("past_key_values") is not None)
        return layer_calls(self._shell[0], inputs)

    def answer(self, hidden: torch.Tensor, exit: int) -> torch.Tensor:
        """The logits `[..., C]` that an exit gives for states `[..., H]`.

        Args:
            hidden: the output of its layer.
            exit: its number, from 1 to L.
        """
        return self.read(hidden if exit == self.num_layers else self.adapters[exit - 1](hidden))

    def answer_each(self, hidden: torch.Tensor, exits: torch.Tensor) -> torch.Tensor:
        """The logits `[n, C]` of states `[n, H]`, each at its own exit, by one LM head.

        Args:
            hidden: the outputs of their layers.
            exits: int64 `[n]`, the numbers of their exits.
        """
        adapted = hidden.clone()
        for exit in exits.unique().tolist():
            if exit < self.num_layers:
                own = exits == exit
                adapted[own] = self.adapters[exit - 1](hidden[own])
        return self.read(adapted)

    def read(self, adapted: torch.Tensor) -> torch.Tensor:
        """Final norm and LM head, `[..., H]` to `[..., C]`."""
        head: Any = self.backbone.get_output_embeddings()
        return head(self._norm(adapted))

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> list[torch.Tensor]:
        """The states `[B, T, H]` at each exit, at full depth."""
        hidden, calls = self.begin(input_ids=input_ids, **inputs)
        states = []
        for depth, call in enumerate(calls, start=1):
            hidden = call(hidden)
            if depth in self.depths:
                states.append(hidden)
        return states

    def generate(
        self, *args: Any, custom_generate: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        """As the backbone's own `generate`, through its exits where the decoding says so.

        Args:
            args: see transformers.
            custom_generate: a `cee_gym.generation.EarlyExitDecoding`, which is given this model
                too; None for the backbone alone, at full depth.
            kwargs: see transformers.

        Raises:
            CeeGymError: if an argument cannot be honoured with a decoding of one's own.
        """
        backbone: Any = self.backbone
        if custom_generate is None:
            return backbone.generate(*args, **kwargs)
        if kwargs.get("streamer") is not None:
            raise CeeGymError(
                "generate hands no streamer to a decoding: give it to EarlyExitDecoding itself"
            )
        stop = kwargs.pop("stop_strings", None)
        tokenizer = kwargs.pop("tokenizer", None) or getattr(custom_generate, "tokenizer", None)
        if stop is not None:
            if tokenizer is None:
                raise CeeGymError("stop_strings take a tokenizer: give it to EarlyExitDecoding")
            kwargs["stopping_criteria"] = [
                *(kwargs.get("stopping_criteria") or ()),
                StopStringCriteria(tokenizer, stop),
            ]
        return backbone.generate(
            *args, custom_generate=functools.partial(custom_generate, decoder=self), **kwargs
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the backbone as transformers does, and beside it the exits."""
        tensors = {name: t.contiguous() for name, t in self.adapters.state_dict().items()}
        exits = {"depths": list(self.depths), "adapter_rank": self.adapter_rank}
        with written_into(directory) as unfinished:
            self.backbone.save_pretrained(unfinished)
            save_file(tensors or {"none": torch.zeros(0)}, unfinished / ADAPTERS)
            write_document(unfinished / EXITS, {"format": FORMAT, "version": VERSION, **exits})

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Reads what `save_pretrained` wrote.

        Raises:
            BackboneError: if there are no exits, or they are damaged.
        """
        directory = Path(directory)
        found = read_document(
            directory / EXITS,
            "exits of a decoder",
            remedy="make them by cee-gym build or train",
            format=FORMAT,
            versions=(VERSION,),
            error=BackboneError,
        )
        kinds = (OSError, RuntimeError, KeyError, TypeError, ValueError, SafetensorError)
        with refused_if_damaged(f"the exits at {directory}", "make them again", kinds):
            decoder = cls(
                load_causal_lm(directory), tuple(found["depths"]), int(found["adapter_rank"])
            )
            tensors = load_file(directory / ADAPTERS)
            tensors.pop("none", None)
            decoder.adapters.load_state_dict(tensors)
        return decoder

    @torch.no_grad()
    def _try(self) -> None:
        """Refuses a backbone that is more than its layers, final norm and head.

        Raises:
            BackboneError: saying what differs.
        """
        name, was_training = type(self.backbone).__name__, self.backbone.training
        self.backbone.eval()
        ids = torch.tensor([[1, 2, 3, 4]], device=self.device) % self.num_labels
        try:
            own = self.backbone(input_ids=ids, use_cache=False).logits
            states = self(ids)
            logits = self.answer(states[-1], self.num_layers)
        except BackboneError:
            raise
        except Exception as error:  # whatever a backbone of another kind runs into
            raise BackboneError(
                f"the layers of {name} cannot be run one at a time ({first_line(error)}): "
                f"{GIVE_A_DECODER}"
            ) from error
        finally:
            self.backbone.train(was_training)
        if own.shape != logits.shape or (own - logits).abs().max() > 1e-3 * own.abs().max():
            raise BackboneError(
                f"{name} does more than to run its layers, its final norm and its LM head, so its "
                f"exits would not be its own: {GIVE_A_DECODER}, or register its family with the "
                "path of the norm that follows the last layer"
            )


def _base(backbone: PreTrainedModel) -> PreTrainedModel:
    base: Any = backbone.base_model
    return base


def check_decoder(config: PreTrainedConfig) -> None:
    """Refuses what is no decoder with at least two layers.

    Raises:
        BackboneError: saying what it is.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(f"{kind} is an encoder-decoder: {GIVE_A_DECODER}")
    known = family_of(config)
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    encoder = not known.causal and not getattr(config, "is_decoder", False) and known.norm is None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or (encoder and _is_encoder(kind)):
        raise BackboneError(f"{kind} is no decoder: {GIVE_A_DECODER}")
    if int(getattr(config, "num_hidden_layers", 0)) < 2:
        raise BackboneError(f"this {kind} has fewer than two layers: {GIVE_A_DECODER}")
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager"):
        raise BackboneError(
            f"this {kind} runs its layers by {attention}: set attn_implementation to sdpa or eager"
        )


def _is_encoder(kind: str) -> bool:
    """BERT and kin can be made causal, but are not unless their configuration says so."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def has_exits(directory: str | Path) -> bool:
    """Whether it is a directory that `MultiExitDecoder.save_pretrained` wrote."""
    return (Path(directory) / EXITS).is_file()


def load_causal_lm(name_or_path: str | Path) -> PreTrainedModel:
    """A causal language model in float32 and eval mode.

    Args:
        name_or_path: a directory, a name on the hub, or a .gguf file.

    Raises:
        BackboneError: if it is not available, or is no decoder.
    """
    place, given = _split_gguf(name_or_path)
    try:
        if "gguf_file" not in given:
            check_decoder(AutoConfig.from_pretrained(place, trust_remote_code=False))
        found: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **({} if "gguf_file" in given else {"use_safetensors": True}),
            **given,
        )
    except CeeGymError:
        raise
    except Exception as error:  # damaged files bring about errors of any kind
        raise unreachable_backbone(str(name_or_path), error) from error
    model, loaded = found
    if "gguf_file" not in given:
        tied = model.config.get_text_config().tie_word_embeddings
        check_loaded(name_or_path, loaded, lambda w: not (tied and w.startswith("lm_head")))
    else:
        # A model that was read from GGUF says it is quantised, and refuses to be saved.
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        model = plain
    return model.eval()


def load_lm_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a causal language model; padding is on the left, as `generate` wants it.

    One without a padding token pads with its end-of-text token, which attention does not see.

    Raises:
        BackboneError: if there is none.
    """
    place, given = _split_gguf(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **given)
    except Exception as error:  # damaged files bring about errors of any kind
        raise BackboneError(f"no tokenizer at {name_or_path}: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise BackboneError(
            f"the tokenizer at {name_or_path} has no padding token and no end-of-text token, and "
            "batches need one: set its pad_token"
        )
    tokenizer.padding_side = "left"
    return tokenizer


def _split_gguf(name_or_path: str | Path) -> tuple[str, dict[str, str]]:
    path = Path(name_or_path).expanduser()
    if path.suffix != ".gguf":
        return str(path if path.is_dir() else name_or_path), {}
    if not path.is_file():
        raise BackboneError(f"there is no file {path}")
    return str(path.parent), {"gguf_file": path.name}
