"""The ids that `gymnasium.make` knows."""

import gymnasium as gym

from cee_gym.errors import CeeGymError

BENCHMARKS: dict[str, str] = {
    "EarlyExit-BERT-RTE": "rte",
    "EarlyExit-BERT-MRPC": "mrpc",
    "EarlyExit-BERT-SST-2": "sst2",
    "EarlyExit-BERT-QNLI": "qnli",
    "EarlyExit-BERT-QQP": "qqp",
    "EarlyExit-BERT-MNLI": "mnli",
    "EarlyExit-BERT-CoLA": "cola",
    "EarlyExit-BERT-MCID": "mcid",
    "EarlyExit-BERT-StackOverflow": "stackoverflow",
    "EarlyExit-ToyBERT-Clauses": "clauses",
}
"""Every recorded benchmark of classification and the task its text comes from."""
TOKEN_BENCHMARKS: dict[str, str] = {
    "EarlyExit-LLaMA-Alpaca": "alpaca",
    "EarlyExit-LLaMA-Dolly": "dolly",
    "EarlyExit-LLaMA-CNNDM": "cnn-dailymail",
    "EarlyExit-TinyLLaMA-Stories": "stories",
}
"""Every recorded benchmark of generation, each token an instance, and its task."""


def register_envs() -> None:
    """Registers the benchmarks, and `EarlyExit` for your own trace; again, it does nothing."""
    _register("EarlyExit", {})
    for id in (*BENCHMARKS, *TOKEN_BENCHMARKS):
        _register(id, {"recording": id})


def register_benchmark(id: str, task: str) -> None:
    """Registers a benchmark of your own, which `cee-gym build` can then record.

    Args:
        id: what `gymnasium.make` is to know it by.
        task: the name of its task.

    Raises:
        CeeGymError: if the id is taken.
    """
    if BENCHMARKS.get(id) != task:
        if id in gym.registry:
            raise CeeGymError(f"the id {id} is taken: choose another one for task {task!r}")
        BENCHMARKS[id] = task
    _register(id, {"recording": id})


def _register(id: str, kwargs: dict[str, str]) -> None:
    if id not in gym.registry:
        gym.register(
            id,
            entry_point="cee_gym.envs.recorded:EarlyExitEnv",
            vector_entry_point="cee_gym.envs.vector:EarlyExitVectorEnv",
            kwargs=kwargs,
        )
