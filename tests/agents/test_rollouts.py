"""Episodes of the same instance, in environments that show one state at a time."""

import numpy as np
import pytest

from cee_gym.agents.rollouts import play
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from tests.made_traces import write_trace

L = 4


@pytest.mark.parametrize("num_envs", [0, 5])
def test_all_episodes_of_an_instance_pay_the_same_price(tmp_path, num_envs) -> None:
    trace = write_trace(tmp_path / "t", n=6, num_layers=L, width=5)
    settings = {"trace": trace, "alpha": (0.0, 0.5), "observe": ("hidden", "layer", "alpha")}
    if num_envs:
        env = EarlyExitVectorEnv(num_envs, autoreset_mode="Disabled", **settings)
    else:
        env = EarlyExitEnv(**settings)
    uniforms = np.random.default_rng(0).random((4, 3, L), dtype=np.float32)
    episodes = play(env, uniforms, lambda obs, u: u < 0.3)
    alpha = episodes.observations[:, 0, -1:]
    assert len(np.unique(alpha)) == 4
    where = episodes.instances[:, None], episodes.exits
    expected = env.problem.quality[where] - alpha * env.problem.price[where]
    np.testing.assert_allclose(episodes.returns, expected, rtol=1e-5, atol=1e-6)


def test_episodes_need_autoreset_disabled(tmp_path) -> None:
    trace = write_trace(tmp_path / "t", n=6, num_layers=L, width=5)
    env = EarlyExitVectorEnv(4, trace=trace)
    with pytest.raises(CeeGymError, match="Disabled"):
        play(env, np.zeros((1, 2, L), np.float32), lambda obs, u: u < 1)
