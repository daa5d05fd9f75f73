"""The runtime leaves every text where, and with what, the whole forward pass says it is to."""

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RoFormerConfig

from cee_gym.agents import make_agent
from cee_gym.agents.registry import agent_names
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.backbones.layers import path_of_the_layers
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.exits import MultiExitConfig, MultiExitModel
from cee_gym.inference import EarlyExitRuntime, Exits
from cee_gym.observation import Layout
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence, FixedLayer, Patience, Rule
from cee_gym.problem import Problem
from cee_gym.returns import first_exit
from cee_gym.training.phases import observe_output
from tests.conftest import tiny_config
from tests.made_traces import write_arrays, write_trace

ALL = ("confidence", "margin", "hidden", "layer", "probs", "entropy", "alpha")
NUM_LABELS = 3
ALPHA = 0.02
Text = list[int]

# Hypothesis takes the fixture `family` for something it should reset, and it is a string.
few = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts_of_a_batch = st.lists(
    st.lists(st.integers(5, 22), min_size=1, max_size=12), min_size=1, max_size=9
)


@cache
def make_model(family: str, attention: str = "sdpa", **config: Any) -> MultiExitModel:
    """With weights so large that states and layers differ."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = MultiExitModel(
            MultiExitConfig(copy.deepcopy(tiny_config(family)), num_labels=NUM_LABELS, **config)
        )
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.set_attn_implementation(attention)
    return model.eval()


@cache
def make_env(
    num_layers: int, observe: tuple[str, ...] = ALL, alpha: float | tuple[float, float] = ALPHA
) -> EarlyExitEnv:
    """Shows observations like those of the models; what is in them does not matter."""
    with TemporaryDirectory() as directory:
        trace = write_trace(
            Path(directory) / "t", num_layers=num_layers, width=16, num_labels=NUM_LABELS
        )
        return EarlyExitEnv(trace=trace, observe=observe, alpha=alpha)


def learned(name: str, env: EarlyExitEnv, **hyperparameters: Any) -> ExitPolicy:
    policy = make_agent(name, **hyperparameters).learn(env, 200).policy
    network = getattr(policy.score, "network", None)
    if network is not None:  # so that it leaves here and there
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return policy


def padded(model: MultiExitModel, texts: Sequence[Text], more: int = 0) -> dict[str, torch.Tensor]:
    """A batch, with `more` columns of padding than it takes."""
    longest = max(map(len, texts)) + more
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    pad = model.config.backbone_config.pad_token_id
    ids = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def whole(
    model: MultiExitModel, policy: ExitPolicy, texts: Sequence[Text]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[N, L]` and logits `[N, L, C]` of texts run one by one through all layers."""
    scores, logits = [], []
    for text in texts:
        output = model(**padded(model, [text]))
        alpha = np.full((1, 1), ALPHA, dtype=np.float32)
        scores.append(policy.scores(observe_output(output, policy.layout, alpha))[0])
        logits.append(output.logits[0].numpy())
    return np.stack(scores), np.stack(logits)


def clear_threshold(scores: np.ndarray) -> float:
    """A threshold that spreads the exits over the layers, and that no score is near.

    Rounding must not decide where a text leaves.
    """
    values = np.unique(np.append(scores[:, :-1], [0, 1])).astype(np.float64)
    middles = (values[1:] + values[:-1])[np.diff(values) > 1e-4] / 2
    fullest = [np.bincount(first_exit(scores > middle)).max() for middle in middles]
    return float(middles[np.argmin(fullest)])


def assert_as_said(
    exits: Exits, scores: np.ndarray, logits: np.ndarray, threshold: float, order: Sequence[int]
) -> None:
    exit_layer = first_exit(scores > threshold)[order]
    np.testing.assert_array_equal(exits.exit_layer, exit_layer)
    at_exit = logits[order, exit_layer - 1]
    np.testing.assert_allclose(exits.logits, at_exit, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(exits.prediction, exits.logits.argmax(axis=1))
    assert exits.exit_layer.dtype == exits.prediction.dtype == np.int64
    assert exits.logits.dtype == np.float32


@few
@given(texts=texts_of_a_batch, data=st.data())
@pytest.mark.parametrize("name", ["reinforce", "patience"])
def test_a_text_leaves_where_it_would_alone_whatever_the_batch(
    family: str, name: str, texts: list[Text], data: st.DataObject
) -> None:
    model = make_model(family)
    policy = learned(name, make_env(model.num_layers))
    scores, logits = whole(model, policy, texts)
    threshold = clear_threshold(scores)
    runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
    order = data.draw(st.permutations(range(len(texts))))
    more = data.draw(st.integers(0, 5))
    exits = runtime(padded(model, [texts[row] for row in order], more))
    assert_as_said(exits, scores, logits, threshold, order)
    for row, text in enumerate(texts):
        assert_as_said(runtime(padded(model, [text])), scores, logits, threshold, [row])


def many_texts(seed: int = 0, size: int = 24) -> list[Text]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 23, size=length).tolist() for length in rng.integers(1, 20, size)]


@pytest.mark.parametrize(
    "exits",
    [{"pooling": "first"}, {"pooling": "mean"}, {"pooler": "per_layer"}, {"pooler": "scaled"}],
    ids=lambda exits: next(iter(exits.values())),
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_family_attention_and_kind_of_exit(
    family: str, attention: str, exits: dict[str, str]
) -> None:
    model = make_model(family, attention, **exits)
    if exits.get("pooler") == "scaled":
        model.divide_logits(torch.linspace(0.5, 2, model.num_layers))
    policy = learned("expected-return", make_env(model.num_layers))
    texts = many_texts()
    scores, logits = whole(model, policy, texts)
    threshold = clear_threshold(scores)
    runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
    found = runtime(padded(model, texts))
    assert_as_said(found, scores, logits, threshold, range(len(texts)))
    assert len(set(found.exit_layer)) > 1  # or the test would say little


AGENTS_TO_RUN: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in agent_names() if name not in ("random", "patience")),
    ("patience", {"patience": 1}),
    ("patience", {"patience": 2}),
    ("fixed-layer", {"layer": 2}),
    ("expected-return", {"start": "confidence"}),
    ("longstaff-schwartz", {}),
    ("sb3:ppo", {"n_steps": 2, "num_envs": 32, "batch_size": 32}),
]


@pytest.mark.parametrize(("name", "hyperparameters"), AGENTS_TO_RUN, ids=str)
def test_every_agent(name: str, hyperparameters: dict[str, Any]) -> None:
    model = make_model("electra")
    policy = learned(name, make_env(model.num_layers), **hyperparameters)
    texts = many_texts()
    scores, logits = whole(model, policy, texts)
    thresholds = {clear_threshold(scores)}
    if np.abs(scores - policy.threshold).min() > 1e-4:
        thresholds.add(policy.threshold)
    for threshold in thresholds:
        runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
        order = np.random.default_rng(0).permutation(len(texts))
        exits = runtime(padded(model, [texts[row] for row in order]))
        assert_as_said(exits, scores, logits, threshold, order)


class Steadiest(Rule):
    """The highest confidence so far, the less of it the fewer exits in a row agreed."""

    name = "steadiest"
    reads = ("in_a_row", "confidence")
    has_memory = True

    def scores(self, observations: np.ndarray, layout: Layout) -> np.ndarray:
        run, confidence = (observations[..., layout[part].start] for part in self.reads)
        return np.maximum.accumulate(confidence * run / (run + 1), axis=1)


@pytest.mark.parametrize("kind", ["a network", "a rule with a memory"])
def test_what_is_read_off_earlier_exits_is_as_recorded_while_texts_leave(
    own_module: str, tmp_path: Path, kind: str
) -> None:
    model, texts = make_model("electra"), many_texts(size=60)
    with torch.inference_mode():
        outputs = [model(**padded(model, [text])) for text in texts]
    states, logits = (
        torch.cat([output[part] for output in outputs]).numpy() for part in ("states", "logits")
    )
    labels = np.zeros(len(texts), dtype=np.int64)
    trace = write_arrays(tmp_path / "trace", states, logits, labels)
    observe = ("layer", "confidence", "agreement", "previous", f"{own_module}:in_a_row")
    if kind == "a network":
        policy = learned("reinforce", EarlyExitEnv(trace=trace, observe=observe))
    else:
        policy = ExitPolicy(Steadiest(), Problem(trace, observe=observe).layout)
    scores = policy.scores_on(Problem(trace, observe=observe))
    threshold = clear_threshold(scores)
    runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
    exits = runtime(padded(model, texts))
    assert_as_said(exits, scores, logits, threshold, range(len(texts)))
    assert len(set(exits.exit_layer)) > 2  # it has gone on without those that left


def test_a_policy_held_at_one_alpha() -> None:
    model = make_model("bert")
    every_price = learned("reinforce", make_env(model.num_layers, alpha=(0.0, 1.0)))
    texts, found = many_texts(), []
    for alpha in (0.0, 1.0):
        policy = every_price.at(alpha=alpha)
        scores, logits = whole(model, policy, texts)
        threshold = clear_threshold(scores)
        exits = EarlyExitRuntime(model, policy.at(threshold=threshold))(padded(model, texts))
        assert_as_said(exits, scores, logits, threshold, range(len(texts)))
        found.append(scores)
    assert np.abs(found[0] - found[1]).max() > 0.05  # alpha is seen


def test_a_model_in_half_precision_gives_float32() -> None:
    model = copy.deepcopy(make_model("bert")).to(torch.bfloat16)
    policy = learned("reinforce", make_env(model.num_layers))
    exits = EarlyExitRuntime(model, policy)(padded(model, many_texts()))
    assert exits.logits.dtype == np.float32
    assert np.isfinite(exits.logits).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_what_the_cpu_gives(family: str) -> None:
    model = make_model(family)
    policy = learned("reinforce", make_env(model.num_layers))
    texts = many_texts()
    scores, logits = whole(model, policy, texts)
    threshold = clear_threshold(scores)
    runtime = EarlyExitRuntime(copy.deepcopy(model).cuda(), policy.at(threshold=threshold))
    exits = runtime(padded(model, texts))
    assert_as_said(exits, scores, logits, threshold, range(len(texts)))


# Layers are really skipped


@contextmanager
def runs_of(model: MultiExitModel) -> Iterator[tuple[list[tuple[int, int]], list[tuple[int, int]]]]:
    """The batch and length of every layer that runs, and the number and rows of every head."""
    of_layers: list[tuple[int, int]] = []
    of_heads: list[tuple[int, int]] = []

    def note_head(number: int) -> Callable[..., None]:
        return lambda module, given, output: of_heads.append((number, len(output)))

    def note_layer(module: torch.nn.Module, given: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        of_layers.append((hidden.shape[0], hidden.shape[1]))

    layers = model.backbone.get_submodule(path_of_the_layers(model.backbone)).children()
    handles = [layer.register_forward_hook(note_layer) for layer in layers]
    handles += [
        head.register_forward_hook(note_head(number)) for number, head in enumerate(model.heads, 1)
    ]
    yield of_layers, of_heads
    for handle in handles:
        handle.remove()


def test_rows_that_left_and_their_columns_are_not_run(family: str) -> None:
    model = make_model(family)
    policy = learned("reinforce", make_env(model.num_layers))
    texts = many_texts()
    lengths = np.array([len(text) for text in texts])
    threshold = clear_threshold(whole(model, policy, texts)[0])
    runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
    with runs_of(model) as (of_layers, of_heads):
        exit_layer = runtime(padded(model, texts, more=7)).exit_layer
    running = [exit_layer >= layer for layer in range(1, exit_layer.max() + 1)]
    assert of_layers == [(there.sum(), lengths[there].max()) for there in running]
    assert of_heads == [(layer, there.sum()) for layer, there in enumerate(running, 1)]
    assert len({*of_layers}) > 1


@pytest.mark.parametrize(
    ("rule", "heads"),
    [
        (FixedLayer(layer=3), [3]),
        (FixedLayer(layer=9), [5]),
        (Patience(patience=4), [1, 2, 3, 4, 5]),  # those before are what it counts
        (Patience(patience=9), [5]),
        (Confidence(threshold=1.0), [1, 2, 3, 4, 5]),
    ],
)
def test_heads_run_where_the_policy_can_leave_and_at_the_last_layer(
    rule: Rule, heads: list[int]
) -> None:
    model = make_model("electra")
    runtime = EarlyExitRuntime(model, rule.policy(make_env(model.num_layers)))
    with runs_of(model) as (of_layers, of_heads):
        exits = runtime(padded(model, many_texts()))
    assert [number for number, _ in of_heads][: len(heads)] == heads[: len(of_heads)]
    assert len(of_layers) == exits.exit_layer.max() == of_heads[-1][0]


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a GPU, besides copies to the host."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += by_mask or any(name.startswith(waiting) for waiting in self.WAITING)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["reinforce", "confidence", "patience", "fixed-layer"])
def test_the_host_waits_once_for_each_decision(name: str, monkeypatch) -> None:
    model = make_model("electra")
    policy = learned(name, make_env(model.num_layers))
    texts = many_texts()
    threshold = clear_threshold(whole(model, policy, texts)[0])
    runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
    inputs = padded(model, texts)
    with torch.inference_mode(), Reads() as by_transformers:
        model.begin(inputs)
    waits: list[str] = []
    for method in ("cpu", "tolist"):
        monkeypatch.setattr(torch.Tensor, method, noted(waits, method))
    with Reads() as reads:
        exits = runtime(inputs)
    assert reads.count == by_transformers.count
    layers = policy.score.exit_layers(model.num_layers, threshold)
    asked = [layer for layer in layers if layer <= exits.exit_layer.max()]
    # A score that is computed on the host takes the observations there, and says the answer there.
    on_host = ["cpu", "tolist"] if name in ("patience", "fixed-layer") else ["tolist"]
    # First the mask, which is on the host already, and last the logits.
    assert waits == ["cpu", *on_host * len(asked), "cpu"]


def noted(waits: list[str], name: str) -> Callable[[torch.Tensor], Any]:
    original = getattr(torch.Tensor, name)

    def note(tensor: torch.Tensor) -> Any:
        waits.append(name)
        with torch.utils._python_dispatch._disable_current_modes():
            return original(tensor)

    return note


# Threads and errors


def test_threads_share_one_runtime() -> None:
    model = make_model("bert")
    policy = learned("reinforce", make_env(model.num_layers))
    batches = [many_texts(seed, size=6 + seed) for seed in range(4)]
    said = [whole(model, policy, texts) for texts in batches]
    threshold = clear_threshold(np.concatenate([scores for scores, _ in said]))
    runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
    found: list[Exits | None] = [None] * len(batches)
    barrier = Barrier(len(batches), timeout=20)

    def wait_for_all(*_: Any) -> None:
        barrier.wait()

    # All are past the embeddings before any goes on to the layers, several times.
    handle = model.backbone.embeddings.register_forward_hook(wait_for_all)

    def work(number: int) -> None:
        for _ in range(5):
            found[number] = runtime(padded(model, batches[number]))

    threads = [Thread(target=work, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    handle.remove()
    for exits, (scores, logits) in zip(found, said, strict=True):
        assert exits is not None
        assert_as_said(exits, scores, logits, threshold, range(len(scores)))


def test_a_model_in_training_mode_is_put_out_of_it() -> None:
    model = copy.deepcopy(make_model("bert"))
    runtime = EarlyExitRuntime(model.train(), learned("reinforce", make_env(model.num_layers)))
    inputs = padded(model, many_texts())
    first = runtime(inputs)
    model.train()
    np.testing.assert_array_equal(runtime(inputs).logits, first.logits)
    assert not model.training


@pytest.mark.parametrize("mask", [[[0, 1, 1]], [[1, 0, 1]], [[0, 0, 0]], [[1, 1, 1], [0, 1, 1]]])
def test_padding_elsewhere_than_on_the_right_is_refused(mask: list[list[int]]) -> None:
    model = make_model("bert")
    runtime = EarlyExitRuntime(model, Confidence().policy(make_env(model.num_layers)))
    attention_mask = torch.tensor(mask)
    with pytest.raises(CeeGymError, match="padding on the right only"):
        runtime({"input_ids": attention_mask + 5, "attention_mask": attention_mask})


def test_a_policy_that_does_not_fit_is_refused() -> None:
    model = make_model("bert")
    env = make_env(model.num_layers)
    with pytest.raises(CeeGymError, match="another backbone, depth or choice of parts"):
        EarlyExitRuntime(model, learned("reinforce", make_env(model.num_layers + 1)))
    policy = replace(learned("reinforce", env), model="0123456789abcdef")
    with pytest.raises(CeeGymError, match="learned on the states of model 0123456789abcdef"):
        EarlyExitRuntime(model, policy)
    EarlyExitRuntime(model, replace(policy, model=fingerprint(model)))


def test_a_policy_for_every_price_is_held_at_one() -> None:
    model = make_model("bert")
    every_price = learned("reinforce", make_env(model.num_layers, alpha=(0.0, 1.0)))
    with pytest.raises(CeeGymError, match="choose one by alpha, saved layers or points lost"):
        EarlyExitRuntime(model, every_price)
    runtime = EarlyExitRuntime(model, every_price.at(alpha=0.5))
    with pytest.raises(CeeGymError, match="choose one by alpha, saved layers or points lost"):
        runtime.at(every_price)


def test_another_speed_shares_the_model_and_decides_otherwise() -> None:
    model = make_model("bert")
    policy = learned("reinforce", make_env(model.num_layers))
    texts = many_texts()
    scores, logits = whole(model, policy, texts)
    threshold = clear_threshold(scores)
    never = EarlyExitRuntime(model, policy.at(threshold=1.0))
    runtime = never.at(policy.at(threshold=threshold))
    assert runtime.model is model
    assert_as_said(runtime(padded(model, texts)), scores, logits, threshold, range(len(texts)))
    assert set(never(padded(model, texts)).exit_layer) == {model.num_layers}
    with pytest.raises(CeeGymError, match="this is another policy: make a runtime of its own"):
        runtime.at(replace(policy, model="0123456789abcdef"))


def test_a_threshold_that_no_score_passes_runs_all_layers() -> None:
    model = make_model("bert")
    policy = Confidence().policy(make_env(model.num_layers)).at(threshold=1.0)
    texts = many_texts()
    _, logits = whole(model, policy, texts)
    exits = EarlyExitRuntime(model, policy)(padded(model, texts))
    assert set(exits.exit_layer) == {model.num_layers}
    np.testing.assert_allclose(exits.logits, logits[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda runtime: pickle.loads(pickle.dumps(runtime))]
)
@pytest.mark.parametrize("name", ["reinforce", "confidence", "sb3:ppo"])
def test_a_copy_gives_the_same_answers(
    name: str, copied: Callable[[Any], Any], family: str
) -> None:
    model = make_model(family)
    policy = learned(name, make_env(model.num_layers))
    texts = many_texts()
    scores, logits = whole(model, policy, texts)
    threshold = clear_threshold(scores)
    twin = copied(EarlyExitRuntime(model, policy.at(threshold=threshold)))
    assert_as_said(twin(padded(model, texts)), scores, logits, threshold, range(len(texts)))


def test_a_copy_may_have_been_cast_since_it_was_loaded() -> None:
    model = copy.deepcopy(make_model("bert"))
    policy = replace(learned("reinforce", make_env(model.num_layers)), model=fingerprint(model))
    runtime = EarlyExitRuntime(model, policy)
    model.to(torch.bfloat16)
    texts = padded(model, many_texts())
    np.testing.assert_array_equal(copy.deepcopy(runtime)(texts).logits, runtime(texts).logits)


def test_a_score_at_the_threshold_stays() -> None:
    model = copy.deepcopy(make_model("bert"))
    with torch.no_grad():
        for head in model.heads:
            head.weight.mul_(1e4)
    policy = Confidence(threshold=1.0).policy(make_env(model.num_layers))
    _, logits = whole(model, policy, many_texts())
    assert (torch.tensor(logits).softmax(dim=2).amax(dim=2) == 1).all()
    exits = EarlyExitRuntime(model, policy)(padded(model, many_texts()))
    assert set(exits.exit_layer) == {model.num_layers}


def test_a_backbone_from_which_texts_cannot_be_taken_is_refused_before_it_is_used() -> None:
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = RoFormerConfig(vocab_size=24, num_hidden_layers=3, **size)
    model = MultiExitModel(MultiExitConfig(config, num_labels=NUM_LABELS))
    policy = Confidence().policy(make_env(model.num_layers))
    with pytest.raises(BackboneError, match="from which texts that have left cannot be taken"):
        EarlyExitRuntime(model, policy)
