"""A small network for every layer, as a score."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from cee_gym.observation import Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.per_layer import PerLayerScore, bounds, make_network, states
from cee_gym.policies.rules import PCEE, Confidence, Margin, Patience, Rule
from cee_gym.problem import Problem
from cee_gym.traces.trace import Trace
from tests.made_traces import write_arrays

SIZES = Sizes(num_layers=4, width=3, num_labels=2)
# The layer in the middle, so that what is read lies on both sides of it.
LAYOUT = layout_of(("confidence", "hidden", "layer", "alpha", "entropy"), SIZES)
RANGE = (0.1, 0.5)


def observations(n: int = 7) -> np.ndarray:
    found = np.random.default_rng(0).random((n, 4, 10), dtype=np.float32)
    found[..., LAYOUT["layer"]] = np.eye(4)
    return found


def policy(hidden_width: int, start: str, is_probability: bool = True) -> ExitPolicy:
    network = make_network(LAYOUT, RANGE, hidden_width, start, seed=3)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    score = PerLayerScore(network, LAYOUT, is_probability)
    return ExitPolicy(score, LAYOUT, alpha_range=RANGE)


KINDS = [(0, "equally_likely"), (0, "confidence"), (5, "equally_likely"), (5, "confidence")]


@pytest.mark.parametrize(("hidden_width", "start"), KINDS)
def test_one_state_after_another_is_whole_traces(hidden_width, start) -> None:
    one, seen = policy(hidden_width, start), observations()
    whole = one.scores(seen)
    for t in range(1, 5):
        np.testing.assert_allclose(one.scores(seen[:, :t])[:, -1], whole[:, t - 1], rtol=1e-5)
        np.testing.assert_allclose(one.scores(seen[:, t - 1 : t]), whole[:, t - 1 : t], rtol=1e-5)


@pytest.mark.parametrize(("hidden_width", "start"), KINDS)
@pytest.mark.parametrize("is_probability", [True, False])
def test_it_is_read_back_as_it_was(tmp_path, hidden_width, start, is_probability) -> None:
    one, seen = policy(hidden_width, start, is_probability), observations()
    one.save(tmp_path / "policy")
    again = ExitPolicy.load(tmp_path / "policy")
    assert again.description() == one.description()
    assert again.score.is_probability is is_probability
    np.testing.assert_array_equal(again.scores(seen), one.scores(seen))


def test_from_the_confidence_rule_it_leaves_above_a_confidence_of_nine_tenths() -> None:
    network = make_network(LAYOUT, RANGE, 5, "confidence", seed=0)
    seen = observations(200)
    scores = ExitPolicy(PerLayerScore(network, LAYOUT, True), LAYOUT).scores(seen)
    np.testing.assert_array_equal(scores > 0.5, seen[..., LAYOUT["confidence"].start] > 0.9)


def test_states_are_observations_without_the_layer() -> None:
    seen = torch.tensor(observations())
    kept = [0, 1, 2, 3, 8, 9]
    torch.testing.assert_close(states(seen, LAYOUT), seen[..., kept])


def test_bounds_are_those_of_the_parts_and_equal_where_there_are_none() -> None:
    low, high = bounds(LAYOUT, RANGE)
    assert low.tolist() == [0, 0, 0, 0, pytest.approx(0.1), 0]
    assert high.tolist() == [1, 0, 0, 0, 0.5, 1]


def test_the_same_seed_makes_the_same_networks_and_touches_no_others_numbers() -> None:
    state = torch.get_rng_state()
    made = [make_network(LAYOUT, RANGE, 5, "equally_likely", seed) for seed in (0, 0, 1)]
    a, b, c = (network.state_dict()["hidden_weight"] for network in made)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_runtime_need_not_show_it_the_layer() -> None:
    decider = policy(5, "confidence").decider(torch.device("cpu"))
    assert decider.parts == ("confidence", "hidden", "alpha", "entropy")
    assert decider.alpha == 0.1


@pytest.fixture(scope="module")
def fitted_and_unseen(tmp_path_factory) -> tuple[Trace, Trace]:
    """Exits whose logits wander: 2000 instances, 5 exits, 3 classes, and as many others."""
    traces = []
    for seed in (0, 1):
        logits = np.random.default_rng(seed).normal(size=(2000, 5, 3)).cumsum(axis=1)
        path, labels = tmp_path_factory.mktemp("trace") / "t", np.zeros(2000, dtype=int)
        traces.append(write_arrays(path, np.zeros((2000, 5, 1)), logits, labels))
    return traces[0], traces[1]


def imitation(rule: Rule, trace: Trace, observe: list[str]) -> ExitPolicy:
    """Networks fitted to where a rule leaves, by cross-entropy."""
    problem = Problem(trace, observe=observe)
    network = make_network(problem.layout, (0.0, 0.0), 32, "equally_likely", seed=0)
    seen = states(torch.tensor(problem.observe()), problem.layout)
    leaves = torch.from_numpy(leaving(rule, trace)).float()
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=100, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        found = binary_cross_entropy_with_logits(network(seen)[:, :-1], leaves)
        found.backward()
        return float(found.detach())

    optimizer.step(loss)
    return ExitPolicy(PerLayerScore(network, problem.layout, True), problem.layout)


def leaving(rule: Rule, trace: Trace) -> np.ndarray:
    """Where it leaves, bool `[N, L - 1]`."""
    problem = Problem(trace, observe=("probs", "entropy", "confidence", "margin"))
    return rule.policy(problem).exit_probabilities(problem.observe())[:, :-1] == 1


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        (Confidence(threshold=0.8), "confidence"),
        (Margin(threshold=0.6), "margin"),
        (Patience(patience=3), "agreement"),
        (PCEE(threshold=0.6, patience=2), "previous"),
        (PCEE(threshold=0.85, patience=4), "previous"),
    ],
)
def test_what_is_observed_of_the_path_is_enough_to_do_what_rules_do(
    fitted_and_unseen: tuple[Trace, Trace], rule: Rule, part: str
) -> None:
    fitted, unseen = fitted_and_unseen
    parts = ["layer", "confidence", "margin", "agreement", "previous"]
    expected = leaving(rule, unseen)
    assert 0.05 < expected.mean() < 0.5
    alike = []
    for observe in (parts, [name for name in parts if name != part]):
        policy = imitation(rule, fitted, observe)
        scores = policy.scores_on(Problem(unseen, observe=observe))
        alike.append(float(((scores[:, :-1] > policy.threshold) == expected).mean()))
    assert alike[0] >= 0.99
    assert alike[1] < 0.985  # what the part shows is in no other
