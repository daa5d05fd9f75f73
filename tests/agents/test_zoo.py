"""RL Zoo's own train command on our ids."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rl_zoo3", reason='RL Zoo is not installed: pip install "cee-gym[zoo]"')

SETTINGS = """\
EarlyExit-BERT-RTE:
  policy: MlpPolicy
  n_envs: 8
  n_timesteps: 512
  gamma: 1.0
  n_steps: 16
  batch_size: 64
"""


def test_its_train_command_works_on_a_recorded_benchmark(tmp_path) -> None:
    (tmp_path / "ppo.yml").write_text(SETTINGS)
    arguments = "--algo ppo --env EarlyExit-BERT-RTE --gym-packages cee_gym --conf-file ppo.yml"
    arguments += " --eval-freq 256 --eval-episodes 10 --seed 0 --device cpu --log-folder logs"
    done = subprocess.run(
        [sys.executable, "-m", "rl_zoo3.train", *arguments.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "logs" / "ppo" / "EarlyExit-BERT-RTE_1"
    assert (run / "EarlyExit-BERT-RTE.zip").is_file()
    assert (run / "best_model.zip").is_file()
    assert "gamma" in (run / "EarlyExit-BERT-RTE" / "config.yml").read_text()
    lengths = [
        np.loadtxt(run / f"{number}.monitor.csv", delimiter=",", skiprows=2, ndmin=2)[:, 1]
        for number in range(8)
    ]
    # An episode is as long as its exit is deep, and no timestep of the 512 is counted twice.
    assert set(np.concatenate(lengths)) == {1, 2, 3, 4, 5, 6}
    assert 512 - 8 * 6 < np.concatenate(lengths).sum() <= 512
    with np.load(run / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [256, 512]
        assert evaluations["results"].shape == evaluations["successes"].shape == (2, 10)
