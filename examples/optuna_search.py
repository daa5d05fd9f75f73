"""Search hyper-parameters with Optuna for a goal of your own: accuracy at half of the layers.

`cee-gym tune` searches for the mean return, can be stopped, and goes on; this is for other goals.
"""

import optuna

from cee_gym.agents import ExpectedReturn
from cee_gym.agents.presets import FROM_RULE, OBSERVE
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.curve import evaluate_policy

train, calibration = (
    EarlyExitEnv("EarlyExit-BERT-SST-2", split=split, observe=OBSERVE)
    for split in ("train", "calibration")
)


def objective(trial: optuna.Trial) -> float:
    """Accuracy on calibration, at the threshold that saves half of the layers on train."""
    tried = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.01, 10, log=True),
        "hidden_width": trial.suggest_categorical("hidden_width", [0, 32]),
    }
    policy = ExpectedReturn(**{**FROM_RULE, **tried}).learn(train, 200_000).policy
    half = policy.for_budget(saved_layers=0.5, on=train.problem)
    return evaluate_policy(half, calibration.problem).accuracy


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
study.enqueue_trial({"learning_rate": 1e-3, "weight_decay": 0.3, "hidden_width": 32})
study.optimize(objective, n_trials=6)
print(f"best accuracy {study.best_value:.3f} with {study.best_params}")
