"""Writes a multi-exit model as ONNX graphs that `cee_gym.onnx.runtime` runs.

A graph cannot let some texts of a batch leave in its middle. So the backbone is cut after each
layer where a policy may leave, and between two cuts the rows and columns that are done with are
taken out:

| file | from | to |
|---|---|---|
| `embedding.onnx` | token ids and attention mask, int64 `[B, T]` | `hidden`, `mask`, `weights` |
| `segment-K.onnx` | `hidden`, `mask`, `weights` | `hidden_after` it, `state`, `logits` |
| `config.json` | | the configuration of the model: labels, task, longest text |
| `export.json` | | what the graphs are of, and their digests |

Hidden states are float32 `[B, T, H]`; the mask `[B, 1, T, T]` is true where a token may look;
weights, float32 `[B, T]`, are those of the mean over tokens, where there is one; states are
`[B, H]`, logits `[B, C]`. B and T are free.
"""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from cee_gym.backbones.encoding import check_tokenizer
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.backbones.layers import LayerCall, path_of_the_layers
from cee_gym.documents import write_document
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.exits.classifier import MultiExitModel
from cee_gym.inference.pretrained import EXPORTED
from cee_gym.onnx.model import OUTPUTS, VERSION, OnnxModel, digest

# The first with an operator for attention, which ONNX Runtime runs as one.
OPSET = 23
# Rounding adds up in another order; what is wrong is wrong by more.
TOLERANCE = 1e-3


def export(
    model: MultiExitModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    exit_layers: Sequence[int] | None = None,
    int8: bool = False,
) -> None:
    """Writes a model, and checks that ONNX Runtime computes what it does.

    Args:
        model: put into eval mode. Its layers are to be given nothing but the attention mask beside
            the hidden states, as in BERT, RoBERTa, ELECTRA, DistilBERT and ALBERT.
        directory: must not exist, or be empty.
        tokenizer: saved along.
        exit_layers: where a policy may leave, from 1, beside the last; all by default. The fewer,
            the fewer graphs, and the more each can be optimised.
        int8: with the weights of layers and exits as 8-bit integers, and what they are multiplied
            with rounded to 8 bits as it comes (dynamic quantisation). Embeddings stay float32.

    Raises:
        BackboneError: if the layers are given anything else, the graphs compute anything else, or
            the tokenizer does not fit the model.
        CeeGymError: if a layer is out of range, the directory is taken, or packages are missing.
    """
    directory = Path(directory)
    last = model.num_layers
    ends = sorted({*(range(1, last) if exit_layers is None else exit_layers), last})
    if ends[0] < 1 or ends[-1] > last:
        raise CeeGymError(f"exit_layers must be 1 to {last}, got {list(exit_layers or ())}")
    _refuse_without_packages()
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.backbone, pair=model.config.pair)
    if directory.exists() and any(directory.iterdir()):
        raise CeeGymError(f"{directory} is not empty: export to a directory of its own")
    directory.mkdir(parents=True, exist_ok=True)
    model.eval()
    inputs = _example(model)
    with torch.no_grad(), _same_attention_everywhere(model):
        _, calls = _begin(model, inputs)
        embedding = _Embedding(model, list(inputs))
        given = dict(zip(("hidden", "mask", "weights"), embedding(*inputs.values()), strict=False))
        _save(_graph(embedding, inputs, list(given)), embedding, directory / "embedding.onnx")
        # Stretches of the same shape are one graph with other weights: tracing takes seconds.
        graphs: dict[Any, Any] = {}
        for start, end in pairwise([0, *ends]):
            segment = _Segment(model, calls[start:end], end)
            layers = list(segment.layers)
            shape = str(layers), tuple(map(layers.index, layers))  # ALBERT has a layer repeatedly
            if shape not in graphs:
                graphs[shape] = _graph(segment, given, OUTPUTS)
            _save(graphs[shape], segment, directory / f"segment-{end}.onnx")
    model.config.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    _describe(model, directory, list(inputs), ends, int8=False)
    try:
        _check(model, OnnxModel(directory), inputs)
    except BaseException:
        (directory / EXPORTED).unlink()  # so that nobody runs it
        raise
    if int8:
        for path in directory.glob("segment-*.onnx"):
            _quantize(path)
        _describe(model, directory, list(inputs), ends, int8=True)


def export_full_depth(model: MultiExitModel, path: Path, *, int8: bool = False) -> None:
    """Writes all layers and the last exit as one graph, from token ids to `logits` `[B, C]`.

    There is nowhere to leave in it: it is what early exit is compared with.

    Raises:
        BackboneError: if the layers are given anything but hidden states and attention mask.
        CeeGymError: if packages are missing.
    """
    _refuse_without_packages()
    inputs = _example(model.eval())
    with torch.no_grad(), _same_attention_everywhere(model):
        _, calls = _begin(model, inputs)
        module = _FullDepth(model, list(inputs), calls)
        _save(_graph(module, inputs, ["logits"]), module, path)
    if int8:
        _quantize(path)


def compile_layers(model: MultiExitModel) -> None:
    """Has torch.compile translate the layers, in place, the first time each is run.

    Predictions stay what they are, up to rounding. It takes a C++ compiler on the CPU.
    """
    for layer in model.backbone.get_submodule(path_of_the_layers(model.backbone)).children():
        layer.compile(dynamic=True)


class _Embedding(nn.Module):
    def __init__(self, model: MultiExitModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        hidden, padding = self.model.begin(named)[0], named["attention_mask"]
        weights = self.model.exits[0].weights(padding, hidden.dtype)
        return (hidden, _mask(padding)) if weights is None else (hidden, _mask(padding), weights)


class _Segment(nn.Module):
    def __init__(self, model: MultiExitModel, calls: Sequence[LayerCall], end: int) -> None:
        super().__init__()
        self.calls = calls
        self.layers = nn.ModuleList(call.layer for call in calls)
        self.exit = model.exits[end - 1]
        # The exporter takes the weights of registered modules only.
        of_exit = (self.exit.norm, self.exit.pooler, self.exit.head)
        self.of_exit = nn.ModuleList(module for module in of_exit if module is not None)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        for call in self.calls:
            hidden = _each(call, lambda given: mask if given is _MASK else given)(hidden)
        return hidden, *self.exit(hidden, weights)


class _FullDepth(nn.Module):
    def __init__(self, model: MultiExitModel, names: list[str], calls: list[LayerCall]) -> None:
        super().__init__()
        self.embedding = _Embedding(model, names)
        self.layers = _Segment(model, calls, len(calls))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(*self.embedding(*inputs))[2]


def _mask(padding: torch.Tensor) -> torch.Tensor:
    """Which tokens each token sees, bool `[B, 1, T, T]`, given `[B, T]`, 0 at padding."""
    # Written out for each token that looks: ONNX Runtime's attention does not broadcast there.
    tokens = padding.shape[1]
    return padding.bool()[:, None, None].expand(-1, 1, tokens, tokens)


# Stands in a call where the mask is to be.
_MASK = object()


def _begin(
    model: MultiExitModel, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, list[LayerCall]]:
    """`model.begin`, with `_MASK` in place of the mask.

    Raises:
        BackboneError: if layers are given other tensors, or a mask that hides more than padding.
    """
    mask = _mask(inputs["attention_mask"])

    def without_mask(given: Any) -> Any:
        if given is None or isinstance(given, bool):
            return given
        is_mask = isinstance(given, torch.Tensor) and given.ndim == 4 and given.dtype == torch.bool
        if is_mask and torch.equal(given.expand_as(mask), mask):
            return _MASK
        raise BackboneError(
            f"the layers of {type(model.backbone).__name__} are given more than hidden states and "
            "a mask over the padding, which cannot be exported: give BERT, RoBERTa, ELECTRA, "
            "DistilBERT or ALBERT"
        )

    hidden, calls = model.begin(inputs)
    return hidden, [_each(call, without_mask) for call in calls]


def _each(call: LayerCall, change: Callable[[Any], Any]) -> LayerCall:
    """The call, with what it gives beside the hidden states changed."""
    kwargs = {name: change(value) for name, value in call.kwargs.items()}
    return replace(call, args=tuple(map(change, call.args)), kwargs=kwargs)


def _example(model: MultiExitModel) -> dict[str, torch.Tensor]:
    """Two texts, one of them padded: sizes of 1, and a mask without effect, are special cases."""
    vocabulary = int(model.backbone.config.vocab_size)
    tokens = torch.arange(14, device=model.device).view(2, 7) % (vocabulary - 5) + 5
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    tokens[1, 4:] = int(model.backbone.config.pad_token_id or 0)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if "token_type_ids" in inspect.signature(model.backbone.forward).parameters:
        inputs["token_type_ids"] = torch.zeros_like(tokens)
    return inputs


@contextmanager
def _same_attention_everywhere(model: MultiExitModel) -> Iterator[None]:
    """PyTorch's own attention, which becomes one operator, with a mask of true and false."""
    before = model.backbone.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _graph(
    module: nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str]
) -> torch.onnx.ONNXProgram:
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    sizes: Any = tuple(
        {0: batch, 2: tokens, 3: tokens} if tensor.ndim == 4 else {0: batch, 1: tokens}
        for tensor in inputs.values()
    )
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=sizes if isinstance(module, _Segment) else (sizes,),
            optimize=False,  # it would put the weights into another form; `_save` does it
            verbose=False,
        )
    assert program is not None
    return program


def _save(graph: torch.onnx.ONNXProgram, module: nn.Module, path: Path) -> None:
    """Writes a graph with the weights of this module."""
    template = graph.model
    graph.model = template.clone()
    with _quiet():
        graph.apply_weights(module.state_dict())
        graph.optimize()
        graph.save(path, external_data=False)
    graph.model = template


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter has advice for its own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _quantize(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            path,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # 7 bits: with 8, processors without VNNI instructions overflow.
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def _describe(
    model: MultiExitModel, directory: Path, inputs: list[str], ends: list[int], *, int8: bool
) -> None:
    description = {
        "version": VERSION,
        "model": fingerprint(model),
        "num_layers": model.num_layers,
        "width": model.width,
        "inputs": inputs,
        "exit_layers": ends,
        "int8": int8,
        "opset": OPSET,
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "torch")},
        "files": {path.name: digest(path) for path in sorted(directory.glob("*.onnx"))},
    }
    write_document(directory / EXPORTED, description)


def _check(model: MultiExitModel, exported: OnnxModel, inputs: dict[str, torch.Tensor]) -> None:
    """Refuses graphs that compute anything but what the model does, on more than the example."""
    inputs = {name: tensor.repeat(2, 1).repeat_interleave(2, 1) for name, tensor in inputs.items()}
    with torch.inference_mode():
        expected = model(**inputs).logits.float().cpu().numpy()
        hidden, calls = exported.begin({name: tensor.cpu() for name, tensor in inputs.items()})
        for layer, call in enumerate(calls, start=1):
            hidden = call(hidden)
            if layer not in exported.exit_layers:
                continue
            _, logits = exported.exits[layer - 1](hidden, None)
            if not np.allclose(logits.numpy(), expected[:, layer - 1], TOLERANCE, TOLERANCE):
                raise BackboneError(
                    f"exported, layer {layer} of {type(model.backbone).__name__} says something "
                    "else: give BERT, RoBERTa, ELECTRA, DistilBERT or ALBERT"
                )


def _refuse_without_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise CeeGymError(f'export needs {name}: pip install "cee-gym[export]"') from None
