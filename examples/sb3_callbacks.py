"""Stable-Baselines3's PPO with its own callbacks: evaluate, keep the best, stop early."""

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnNoModelImprovement

from cee_gym.agents.presets import OBSERVE
from cee_gym.agents.sb3 import make_sb3_vec_env

ID = "EarlyExit-BERT-SST-2"
train = make_sb3_vec_env(ID, 128, seed=0, observe=OBSERVE)
calibration = make_sb3_vec_env(ID, 64, seed=1, observe=OBSERVE, split="calibration")

stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=3, min_evals=3, verbose=1)
evaluate = EvalCallback(
    calibration,
    callback_after_eval=stop,
    n_eval_episodes=428,
    eval_freq=64,  # steps of all environments together
    best_model_save_path="runs/sb3-best",
)
# A discount would pay an agent with negative rewards for waiting, so gamma is 1.
model = PPO("MlpPolicy", train, gamma=1.0, n_steps=16, batch_size=512, device="cpu", seed=0)
model.learn(60_000, callback=evaluate)
print(f"best mean return on calibration: {evaluate.best_mean_reward:.3f}")
