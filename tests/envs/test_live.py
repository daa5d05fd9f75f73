import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from gymnasium.utils.env_checker import check_env
from transformers import (
    BertConfig,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from cee_gym.backbones.encoding import EncodedText, load_tokenizer
from cee_gym.backbones.layers import path_of_the_layers
from cee_gym.envs import CONTINUE, EXIT, EarlyExitEnv, LiveEarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.exits import MultiExitConfig, MultiExitModel
from cee_gym.reward import Reward
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.texts import collect
from cee_gym.traces.trace import Trace

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "not", "very", "good", "bad"]
ALL = ("hidden", "layer", "probs", "entropy", "confidence", "alpha")
NUM_LAYERS = 4
SIZE = {
    "vocab_size": len(WORDS) + 5,
    "hidden_size": 16,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Pairs of texts of very different lengths, some of them too long for the model."""
    rng = np.random.default_rng(0)
    texts, pairs = (
        [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(1, 25, size=12)]
        for _ in range(2)
    )
    return Dataset.from_dict(
        {
            "row_id": [f"train/{row}" for row in range(12)],
            "text": texts,
            "pair": pairs,
            "label": rng.integers(3, size=12).tolist(),
        }
    )


def make_model(backbone: PreTrainedConfig | None = None) -> MultiExitModel:
    torch.manual_seed(0)
    backbone = BertConfig(**SIZE) if backbone is None else backbone
    model = MultiExitModel(MultiExitConfig(backbone, max_tokens=32, num_labels=3))
    with torch.no_grad():  # weights as small as the initial ones would make all states alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.train()


def record(
    model: MultiExitModel, tokenizer: BertTokenizer, data: Dataset, path: Path, dtype: str
) -> Trace:
    description = {"task": "made-up", "split": "train", "backbone": "random", "seed": 0}
    text = EncodedText(data, tokenizer, 32)
    return collect(model, text, data, path, description, dtype=dtype, batch_size=5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", {"atol": 1e-5}), ("float16", {"rtol": 2e-3, "atol": 1e-5})]
)
def test_live_and_recorded_are_the_same_process(
    tmp_path: Path, tokenizer: BertTokenizer, data: Dataset, dtype: str, tolerance: dict[str, float]
) -> None:
    model = make_model()
    trace = record(model, tokenizer, data, tmp_path / "trace", dtype)
    arguments: dict[str, Any] = {"alpha": (0.01, 0.1), "observe": ALL}
    live = LiveEarlyExitEnv(model, tokenizer, data, trace=trace, **arguments)
    recorded = EarlyExitEnv(trace=trace, **arguments)
    assert live.observation_space == recorded.observation_space
    assert live.action_space == recorded.action_space

    rng = np.random.default_rng(0)
    exits = Counter()
    for episode in range(60):
        seed = 0 if episode == 0 else None
        one, other = live.reset(seed=seed), recorded.reset(seed=seed)
        assert one[1] == other[1]
        ended = False
        while not ended:
            np.testing.assert_allclose(one[0], other[0], **tolerance)
            action = rng.choice([CONTINUE, EXIT], p=[0.7, 0.3])
            one, other = live.step(action), recorded.step(action)
            ended = one[2]
            assert one[2] == other[2]
            assert one[1] == pytest.approx(other[1], abs=1e-4)
        np.testing.assert_allclose(one[0], other[0], **tolerance)
        info, expected = one[4], other[4]
        assert info.pop("reward_components") == pytest.approx(
            expected.pop("reward_components"), abs=1e-4
        )
        assert info == expected
        exits[info["exit_layer"]] += 1
    assert set(exits) == {1, 2, 3, 4}


def test_vector_reward_is_the_same_live_as_recorded(
    tmp_path: Path, tokenizer: BertTokenizer, data: Dataset
) -> None:
    model = make_model()
    trace = record(model, tokenizer, data, tmp_path / "trace", "float32")
    live = LiveEarlyExitEnv(model, tokenizer, data, trace=trace, vector_reward=True)
    recorded = EarlyExitEnv(trace=trace, vector_reward=True)
    assert live.reward_space == recorded.reward_space
    for instance in range(len(data)):
        for env in (live, recorded):
            env.reset(options={"instance": instance})
        for action in (CONTINUE, EXIT):
            one, other = live.step(action)[1], recorded.step(action)[1]
            assert one.dtype == other.dtype == np.float32
            np.testing.assert_allclose(one, other, atol=1e-4)
        assert one[0] < 0


@contextmanager
def counted_calls(model: MultiExitModel) -> Iterator[Counter[int]]:
    """How often each module in the backbone's list of layers runs."""
    calls: Counter[int] = Counter()
    layers = model.backbone.get_submodule(path_of_the_layers(model.backbone)).children()
    handles = [
        layer.register_forward_hook(lambda *_, number=number: calls.update([number]))
        for number, layer in enumerate(layers, start=1)
    ]
    yield calls
    for handle in handles:
        handle.remove()


def test_every_family_is_the_same_live_as_recorded_and_really_stops(
    tmp_path: Path,
    backbone_config: PreTrainedConfig,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_data: Dataset,
) -> None:
    model = make_model(backbone_config)
    trace = record(model, tiny_tokenizer, tiny_data, tmp_path / "trace", "float32")
    live = LiveEarlyExitEnv(model, tiny_tokenizer, tiny_data, trace=trace)
    recorded = EarlyExitEnv(trace=trace)
    groups = getattr(backbone_config, "num_hidden_groups", model.num_layers)
    shared = model.num_layers // groups  # how many layers in a row are one module
    for exit_layer in range(1, model.num_layers + 1):
        for instance in (0, len(tiny_data) - 1):
            options = {"instance": instance}
            with counted_calls(model) as calls:
                one, other = live.reset(options=options), recorded.reset(options=options)
                for action in [CONTINUE] * (exit_layer - 1) + [EXIT]:
                    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
                    one, other = live.step(action), recorded.step(action)
            assert one[1] == pytest.approx(other[1], abs=1e-4)
            assert one[4]["prediction"] == other[4]["prediction"]
            assert one[4]["exit_layer"] == other[4]["exit_layer"] == exit_layer
            assert calls == Counter(layer // shared + 1 for layer in range(exit_layer))


@pytest.mark.parametrize("exit_layer", range(1, NUM_LAYERS + 1))
def test_layers_after_the_exit_do_not_run_and_none_runs_twice(
    tokenizer: BertTokenizer, data: Dataset, exit_layer: int
) -> None:
    model = make_model()
    env = LiveEarlyExitEnv(model, tokenizer, data, reward=Reward(hardness=None), render_mode="ansi")
    with counted_calls(model) as calls:
        env.reset(seed=0)
        for layer in range(1, exit_layer):
            assert calls == Counter(range(1, layer + 1))
            env.step(CONTINUE)
        env.step(EXIT)
        env.render()
        assert calls == Counter(range(1, exit_layer + 1))


@pytest.mark.real_data
def test_real_weights_and_text_are_the_same_live_as_recorded(tmp_path: Path, shared: Path) -> None:
    backbone, task = str(shared / "models" / "minilm-l6-h384"), get_task("rte")
    model = MultiExitModel.from_backbone(backbone, task.labels)
    tokenizer = load_tokenizer(backbone)
    data = load_splits(task, str(shared / "data" / "rte"))["dev"].select(range(8))
    trace = record(model, tokenizer, data, tmp_path / "trace", "float16")
    live, recorded = (
        LiveEarlyExitEnv(model, tokenizer, data, trace=trace, max_tokens=32),
        EarlyExitEnv(trace=trace, split="train"),
    )
    for instance in range(8):
        options = {"instance": instance}
        one, other = live.reset(options=options), recorded.reset(options=options)
        for action in (CONTINUE, CONTINUE, CONTINUE, CONTINUE, EXIT):
            np.testing.assert_allclose(one[0], other[0], rtol=2e-3, atol=1e-5)
            one, other = live.step(action), recorded.step(action)
        assert one[1] == pytest.approx(other[1], abs=1e-4)


def test_checker_has_nothing_to_say(tokenizer: BertTokenizer, data: Dataset) -> None:
    env = LiveEarlyExitEnv(make_model(), tokenizer, data, reward=Reward(hardness=None), observe=ALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It was not made by gymnasium.make, so the checker cannot make it again.
        warnings.filterwarnings("ignore", message=".*not having a spec")
        check_env(env)


def test_without_a_trace_no_hardness_is_known(tokenizer: BertTokenizer, data: Dataset) -> None:
    model = make_model()
    with pytest.raises(CeeGymError, match="hardness 'memorized_layer' is read from a trace"):
        LiveEarlyExitEnv(model, tokenizer, data)
    env = LiveEarlyExitEnv(model, tokenizer, data, reward=Reward(hardness=None), alpha=0.5)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(EXIT)
    assert "memorized_layer" not in info
    assert info["reward_components"]["price"] == 1
    assert reward == info["reward_components"]["quality"] - 0.5


def test_rows_are_found_in_the_trace_by_their_id(
    tmp_path: Path, tokenizer: BertTokenizer, data: Dataset
) -> None:
    model = make_model()
    trace = record(model, tokenizer, data, tmp_path / "trace", "float32")
    recorded = EarlyExitEnv(trace=trace)
    live = LiveEarlyExitEnv(model, tokenizer, data.select([7, 2]), trace=trace.path)
    for row, instance in enumerate([7, 2]):
        live.reset(options={"instance": row})
        recorded.reset(options={"instance": instance})
        one, other = live.step(EXIT), recorded.step(EXIT)
        assert one[1] == pytest.approx(other[1], abs=1e-4)
        assert one[4]["memorized_layer"] == other[4]["memorized_layer"]


def test_trace_of_another_model(tmp_path: Path, tokenizer: BertTokenizer, data: Dataset) -> None:
    trace = record(make_model(), tokenizer, data, tmp_path / "trace", "float32")
    deeper = make_model(BertConfig(**{**SIZE, "num_hidden_layers": 6}))
    with pytest.raises(CeeGymError, match="has 4 layers, the model 6"):
        LiveEarlyExitEnv(deeper, tokenizer, data, trace=trace)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("row_id", [f"dev/{row}" for row in range(12)], "has no row dev/0"),
        ("label", [0] * 11 + [3], "row 11 of the data has label 3: the model has classes 0 to 2"),
        ("label", [-1] * 12, "row 0 of the data has label -1"),
        ("row_id", None, "no column row_id"),
        ("text", None, "no column text"),
    ],
)
def test_data_that_does_not_fit(
    tmp_path: Path,
    tokenizer: BertTokenizer,
    data: Dataset,
    column: str,
    values: list[Any] | None,
    message: str,
) -> None:
    model = make_model()
    trace = record(model, tokenizer, data, tmp_path / "trace", "float32")
    other = data.remove_columns(column)
    if values is not None:
        other = other.add_column(column, values)
    with pytest.raises(CeeGymError, match=message):
        LiveEarlyExitEnv(model, tokenizer, other, trace=trace)
