"""What the backbone phase descends, against its formula."""

import numpy as np
import pytest
import torch

from cee_gym.agents import Reinforce
from cee_gym.exits import MultiExitOutput
from cee_gym.observation import Sizes, layout_of
from cee_gym.problem_settings import ProblemSettings
from cee_gym.reward import alpha_range
from cee_gym.training import fit, phases
from cee_gym.training.config import AlternationConfig
from cee_gym.training.losses import loss_per_layer, over_exits
from cee_gym.training.phases import observe_output
from cee_gym.training.setup import Setup

PROBLEM = ProblemSettings(observe=("hidden", "layer"))
ROWS = np.arange(6)


def an_agent(**settings) -> Reinforce:
    agent = Reinforce(**settings)
    agent.layout = layout_of(PROBLEM.observe, Sizes(num_layers=3, width=16, num_labels=2))
    agent.alpha_range = alpha_range(PROBLEM.price)
    agent.network = agent.new_network()
    agent.hand_over_network()
    return agent


@pytest.mark.parametrize("backbone_loss", ["sampled", "expected"])
def test_the_backbone_descends_the_loss_where_the_policy_leaves(
    setup: Setup, monkeypatch, tmp_path, backbone_loss
) -> None:
    taken = {}

    def take(_setup, _target, _load, stages, *_, **__):
        taken.update(o=stages[0].objective)
        raise KeyboardInterrupt

    monkeypatch.setattr(phases, "_train_one", take)
    agent = an_agent()
    config = AlternationConfig(rounds=1, backbone_loss=backbone_loss)
    with pytest.raises(KeyboardInterrupt):
        phases.backbone_phase(setup, tmp_path, tmp_path / "models", agent, PROBLEM, config, 1)
    generator = torch.Generator().manual_seed(0)
    output = MultiExitOutput(
        states=torch.randn(6, 3, 16, generator=generator),
        logits=torch.randn(6, 3, 2, generator=generator),
    )
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    losses = loss_per_layer(output.logits, labels)
    observations = observe_output(output, agent.policy.layout, np.zeros((len(ROWS), 1)))
    scores = torch.from_numpy(agent.policy.exit_probabilities(observations))
    torch.manual_seed(0)
    values = torch.stack([taken["o"](output, losses, labels, 1) for _ in range(2000)])
    error = 5 * values.std() / len(values) ** 0.5
    assert abs(values.mean() - over_exits(losses, scores)) <= error + 1e-5
    assert (values.std() > 1e-3) == (backbone_loss == "sampled")


def test_a_policy_trained_together_with_the_backbone_pays_for_layers() -> None:
    agent = an_agent(learning_rate=1e-2)
    settings = ProblemSettings(alpha=(1.0,), hardness="none")
    improve = phases._improver(agent, settings, seed=0)
    output = MultiExitOutput(states=torch.zeros(8, 3, 16), logits=torch.zeros(8, 3, 2))
    alpha = np.ones((8, 1), dtype=np.float32)
    observations = observe_output(output, agent.policy.layout, alpha)
    for _ in range(100):
        improve(observations, output, torch.zeros(8, dtype=torch.long), alpha)
    # Every exit is worth the same, so the first is the best.
    assert (agent.policy.exit_probabilities(observations)[:, 0] > 0.9).all()


def test_the_learning_rate_falls_to_nothing(setup: Setup, monkeypatch) -> None:
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda o: (rates.append(o.param_groups[0]["lr"]), step(o))
    )
    fit.fit(
        setup.initial_model(),
        setup.text["train"],
        ROWS,
        lambda output, losses, labels, step: losses.mean(),
        fit.FitConfig(epochs=2, batch_size=3, learning_rate=0.1),
        accelerator=setup.accelerator,
        seed=0,
        checkpoint=None,
        name="x",
    )
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025])
