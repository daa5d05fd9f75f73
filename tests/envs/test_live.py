import copy
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
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
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.score import Score
from cee_gym.problem import Problem
from cee_gym.reward import Reward
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.texts import collect
from cee_gym.traces.trace import Trace

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "not", "very", "good", "bad"]
PATH = ("margin", "agreement", "previous")
ALL = ("hidden", "layer", "probs", "entropy", "confidence", *PATH, "alpha")
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
    live = LiveEarlyExitEnv(model, tokenizer, data, trace=trace, reward="paper", vector_reward=True)
    recorded = EarlyExitEnv(trace=trace, reward="paper", vector_reward=True)
    assert live.reward_space == recorded.reward_space
    for instance in range(len(data)):
        for env in (live, recorded):
            env.reset(options={"instance": instance})
        for action in (CONTINUE, EXIT):
            one, other = live.step(action)[1], recorded.step(action)[1]
            assert one.dtype == other.dtype == np.float32
            np.testing.assert_allclose(one, other, atol=1e-4)
        assert one[0] < 0


def recorded_undecided(
    tokenizer: BertTokenizer, data: Dataset, path: Path
) -> tuple[MultiExitModel, Trace]:
    """A model of 8 layers whose exits like all classes alike, and often differ; and its trace."""
    model = make_model(BertConfig(**{**SIZE, "num_hidden_layers": 8}))
    liked = record(model, tokenizer, data, path.with_name("liked"), "float32").logits.mean(axis=0)
    with torch.no_grad():
        for head, bias in zip(model.heads, torch.from_numpy(liked), strict=True):
            head.bias -= bias
    return model, record(model, tokenizer, data, path, "float32")


OWN = ("hidden", "mine:runner_up", "layer", "mine:in_a_row", "alpha")


@pytest.mark.parametrize(
    "reward",
    [
        ("mine:probability", None),
        ("mine:margin", None),
        ("mine:probability", "mine:mean_correct", "mine:squares"),
    ],
)
def test_what_is_the_users_own_is_the_same_live_recorded_and_in_batches(
    own_module: str, tmp_path: Path, tokenizer: BertTokenizer, data: Dataset, reward: tuple[str]
) -> None:
    model, trace = recorded_undecided(tokenizer, data, tmp_path / "trace")
    arguments: dict[str, Any] = {
        "reward": Reward(*reward),
        "observe": OWN,
        "alpha": (0.01, 0.1),
    }
    live = LiveEarlyExitEnv(model, tokenizer, data, trace=trace, **arguments)
    recorded = gym.make("EarlyExit", trace=str(trace.path), **arguments)
    vector = gym.make_vec("EarlyExit", num_envs=1, trace=str(trace.path), **arguments)
    assert live.observation_space == recorded.observation_space
    assert vector.single_observation_space == recorded.observation_space
    rng = np.random.default_rng(0)
    paid, in_a_row = set(), set()
    for episode in range(30):
        seed = 0 if episode == 0 else None
        one, other = live.reset(seed=seed), recorded.reset(seed=seed)
        many = vector.reset(options={name: np.array([value]) for name, value in one[1].items()})
        ended = False
        while not ended:
            np.testing.assert_allclose(one[0], other[0], atol=1e-5)
            np.testing.assert_array_equal(many[0][0], other[0])
            action = rng.choice([CONTINUE, EXIT], p=[0.7, 0.3])
            one, other = live.step(action), recorded.step(action)
            many = vector.step(np.array([action]))
            ended = one[2]
            assert one[1] == pytest.approx(other[1], abs=1e-4)
            assert many[1][0] == other[1]
            in_a_row.add(round(float(one[0][live.layout["in_a_row"].start])))
        paid.add(round(one[4]["reward_components"]["quality"], 3))
    assert len(paid) > 10
    assert in_a_row >= {1, 2, 3}


def test_a_quality_that_looks_deeper_is_refused_live(
    own_module: str, tmp_path: Path, tokenizer: BertTokenizer, data: Dataset
) -> None:
    model = make_model()
    reward = Reward("mine:agreement", hardness=None)
    with pytest.raises(CeeGymError, match="'mine:agreement' looks at deeper exits") as caught:
        LiveEarlyExitEnv(model, tokenizer, data, reward=reward)
    assert "\n" not in str(caught.value)
    trace = record(model, tokenizer, data, tmp_path / "trace", "float32")
    problem = EarlyExitEnv(trace=trace, reward=reward).problem
    np.testing.assert_array_equal(problem.quality, trace.prediction == trace.prediction[:, -1:])


class _Shown(Score):
    """Leaves by the mean of what one part of the observation shows."""

    name = "shown-in-tests"

    def __init__(self, part: str) -> None:
        self.reads = (part,)

    def scores(self, observations: Any, layout: Any) -> Any:
        (part,) = self.reads
        shown = observations[..., layout[part]].mean(axis=-1)
        if part == "in_a_row":
            return shown / 8  # it counts
        return 1 - shown if part == "previous" else shown  # entropies fall where exits are sure

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def restore(cls, *_: Any) -> "_Shown":
        raise NotImplementedError


@pytest.mark.parametrize("batch_size", [1, 12])
@pytest.mark.parametrize(
    ("part", "threshold"),
    [
        ("margin", 0.15),
        ("agreement", 1.5 / 8),
        ("agreement", 2.5 / 8),
        ("previous", 0.021),
        ("mine:in_a_row", 1.5 / 8),
    ],
)
def test_a_part_that_shows_the_path_is_the_same_in_the_runtime(
    own_module: str,
    tmp_path: Path,
    tokenizer: BertTokenizer,
    data: Dataset,
    batch_size: int,
    part: str,
    threshold: float,
) -> None:
    model, trace = recorded_undecided(tokenizer, data, tmp_path / "trace")
    problem = Problem(trace, observe=("hidden", "layer", part))
    policy = ExitPolicy(_Shown(part.rpartition(":")[2]), problem.layout, threshold=threshold)
    expected = policy.exit_layers(policy.scores_on(problem))
    assert np.abs(policy.scores_on(problem) - threshold).min() > 1e-4  # rounding is less
    assert len(set(expected)) >= 3  # rows leave, and others go on with what they have seen
    runtime = EarlyExitRuntime(model, policy)
    text = EncodedText(data, tokenizer, 32)
    found = [
        runtime(text.batch(np.arange(start, start + batch_size), torch.device("cpu")))
        for start in range(0, 12, batch_size)
    ]
    np.testing.assert_array_equal(np.concatenate([exits.exit_layer for exits in found]), expected)
    answers = trace.prediction[np.arange(12), expected - 1]
    np.testing.assert_array_equal(np.concatenate([exits.prediction for exits in found]), answers)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("with_trace", [True, False])
def test_a_copy_goes_on_as_the_original_would(
    tmp_path: Path,
    tokenizer: BertTokenizer,
    data: Dataset,
    with_trace: bool,
    through: Callable[[Any], Any],
) -> None:
    model = make_model()
    trace = record(model, tokenizer, data, tmp_path / "trace", "float32")
    given: dict[str, Any] = {"trace": trace} if with_trace else {"reward": "correctness"}
    env = LiveEarlyExitEnv(model, tokenizer, data, alpha=(0.0, 0.1), observe=ALL, **given)
    through(env).reset()  # before the first episode too
    env.reset(seed=3)
    env.step(CONTINUE)  # into the middle of an episode
    twin = through(env)

    def play(one: LiveEarlyExitEnv) -> list[Any]:
        said: list[Any] = []
        for action in (CONTINUE, EXIT, CONTINUE, EXIT, EXIT, EXIT):
            observation, reward, ended, _, _ = one.step(action)
            said += [observation.tolist(), reward]
            if ended:
                observation, info = one.reset()
                said += [observation.tolist(), info]
        return said

    expected = play(env)
    if through is copy.deepcopy:
        assert twin.model is env.model
        assert twin.data is env.data
    np.testing.assert_equal(play(twin), expected)


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
        LiveEarlyExitEnv(model, tokenizer, data, reward="paper")
    env = LiveEarlyExitEnv(model, tokenizer, data, alpha=0.5)
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


def test_a_price_out_of_range_is_refused_before_any_work() -> None:
    with pytest.raises(CeeGymError, match="alpha must be from 0"):
        LiveEarlyExitEnv(None, None, None, alpha=1e308)  # type: ignore[arg-type]


def test_weights_of_instances_are_those_of_a_trace(
    tmp_path: Path, tokenizer: BertTokenizer, data: Dataset
) -> None:
    model, weight = make_model(), np.linspace(0, 1, 12)
    with pytest.raises(CeeGymError, match="hardness of each instance is read from a trace"):
        LiveEarlyExitEnv(model, tokenizer, data, reward=Reward(hardness=weight))
    trace = record(model, tokenizer, data, tmp_path / "trace", "float32")
    some, reward = data.select([7, 2]), Reward(hardness=weight)
    live = LiveEarlyExitEnv(model, tokenizer, some, trace=trace, reward=reward)
    for row, instance in enumerate([7, 2]):
        live.reset(options={"instance": row})
        info = live.step(EXIT)[4]
        assert info["reward_components"]["price"] == pytest.approx(weight[instance])


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
