"""ConsistentEE, end to end: warm-up, then policy phase and backbone phase in turn."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import HParam, Logger, configure

from cee_gym.agents.base import Agent, load_agent
from cee_gym.agents.presets import preset_for
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.report import report
from cee_gym.hardness import memorized_layer
from cee_gym.traces.recordings import open_split
from cee_gym.training.config import AlternationConfig, PolicyConfig
from cee_gym.training.phases import backbone_phase, policy_env, record, warm_up
from cee_gym.training.setup import Setup


class ConsistentEETrainer:
    """Trains a policy, or a policy and its backbone in turn.

    Round 0 warms up the backbone, records it and trains the policy on the recording. Every further
    round trains the backbone at the exits of the policy, records it again and goes on with the
    policy. All of it is under `output`:

        config.json      what was asked for
        round-R/models   the backbones of the round (the last round's are kept)
        round-R/recording, round-R/agent, round-R/evaluation.json
        tensorboard      the curves

    Args:
        agent: not trained yet.
        output: the directory of the run.
        setup: text and backbone; None to train the policy on a finished recording.
        recording: the finished recording; None to make one.
        policy: the environment of the policy phase; what it leaves open is the agent's preset's.
        alternation: the rounds.
        metrics: of the task, the leading one first.
    """

    def __init__(
        self,
        agent: Agent,
        output: Path,
        *,
        setup: Setup | None = None,
        recording: Path | None = None,
        policy: PolicyConfig | None = None,
        alternation: AlternationConfig | None = None,
        metrics: tuple[str, ...] = ("accuracy",),
    ) -> None:
        if (setup is None) == (recording is None):
            raise CeeGymError("give either a setup, to record a backbone, or a finished recording")
        self.agent = agent
        self.output = Path(output)
        self.setup = setup
        self.recording = recording
        self.alternation = alternation or AlternationConfig()
        self.metrics = metrics
        if self.setup is None and self.alternation.rounds:
            raise CeeGymError(
                f"{self.alternation.rounds} rounds train the backbone as well, which takes its "
                "weights and text: give --backbone and --data, or --rounds 0"
            )
        if self.setup is not None and policy is not None and policy.cost != "layers":
            raise CeeGymError(
                f"the profile {policy.cost} is of one model, and this run records one of its own: "
                "build, then profile and train on that recording, without --backbone and --rounds"
            )
        self.policy = (policy or PolicyConfig()).over(preset_for(agent.name, self._task()))

    def _task(self) -> str:
        if self.setup is not None:
            return self.setup.task.name
        assert self.recording is not None
        task: str = open_split(self.recording, "train").header["task"]
        return task

    def description(self) -> dict[str, Any]:
        """Everything that decides the outcome of the run, JSON-able."""
        return {
            "agent": self.agent.name,
            "hyperparameters": self.agent.hyperparameters(),
            "policy": asdict(self.policy),
            "cost": self.policy.layer_costs,
            "alternation": asdict(self.alternation),
            "metrics": list(self.metrics),
            "recording": None if self.recording is None else str(self.recording.resolve()),
            "task": None if self.setup is None else self.setup.task.full_name,
            "backbone": None if self.setup is None else self.setup.backbone,
            "text": None if self.setup is None else self.setup.text_fingerprint,
            "record": None if self.setup is None else asdict(self.setup.config),
        }

    def train(self, *, resume: bool = False, progress_bar: bool = True) -> dict[str, Any]:
        """Runs what is not done yet.

        Args:
            resume: go on with the run in `output`, perhaps with more rounds than it was begun with;
                without it `output` must not hold one.
            progress_bar: show progress and time left.

        Returns:
            The evaluation of the last round on dev, see `cee_gym.evaluation.report.report`.

        Raises:
            CeeGymError: if `output` holds a run and `resume` is not given, or one with other
                settings; or if the agent cannot learn from these observations.
        """
        assert self.policy.observe is not None
        self.agent.check_observe(self.policy.observe)
        self._claim_output(resume)
        logger = configure(str(self.output / "tensorboard"), ["tensorboard"])
        results: dict[str, Any] = {}
        for number in range(self.alternation.rounds + 1):
            results = self._round(number, logger, progress_bar)
        point = results["policy"]["p > 1/2"]
        final = {
            "hparam/accuracy": point["accuracy"],
            "hparam/saved_layers": point["saved_layers"],
            "hparam/return": point["mean_return"],
        }
        flat = _flatten(self.description())
        logger.record("hparams", HParam(flat, dict.fromkeys(final, 0.0)))
        for name, value in final.items():
            logger.record(name, value)
        logger.dump(self.alternation.rounds)
        logger.close()
        return results

    def _claim_output(self, resume: bool) -> None:
        file = self.output / "config.json"
        description = json.loads(json.dumps(self.description()))
        if any(self.output.glob("round-*")):
            if not resume:
                raise CeeGymError(
                    f"{self.output} holds a run already: give --resume to go on with it, or "
                    "another --output"
                )
            try:
                before = dict(json.loads(file.read_text()))
                rounds = description["alternation"]["rounds"]
                if before["alternation"]["rounds"] < rounds:  # a run may be given more
                    before["alternation"]["rounds"] = rounds
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CeeGymError(
                    f"{file} cannot be read ({error}): the settings of the run in {self.output} "
                    "are unknown, so give another --output"
                ) from None
            if changed := [key for key in before if before[key] != description.get(key)]:
                raise CeeGymError(
                    f"{self.output} was begun with another {', '.join(changed)}: repeat its "
                    "settings (config.json), or give another --output"
                )
        self.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(description, indent=1) + "\n")

    def _round(self, number: int, logger: Logger, progress_bar: bool) -> dict[str, Any]:
        here = self.output / f"round-{number}"
        before = self.output / f"round-{number - 1}"
        evaluation = here / "evaluation.json"
        if evaluation.exists():
            self.agent = load_agent(here / "agent")
            results: dict[str, Any] = json.loads(evaluation.read_text())
            return results
        recording = self.recording
        if self.setup is not None:
            models, recording = here / "models", here / "recording"
            if number == 0:
                warm_up(self.setup, models, logger)
            else:
                self.agent = backbone_phase(
                    self.setup,
                    before / "models",
                    models,
                    self.agent,
                    self.policy,
                    self.alternation,
                    number,
                    logger,
                )
            record(self.setup, models, recording)
        assert recording is not None
        for split in ("calibration", "dev"):
            open_split(recording, split)  # refuses before learning what could not be evaluated
        memorized = None
        if number and self.alternation.memorized_layer == "once":
            first = open_split(self.output / "round-0" / "recording", "train")
            memorized = memorized_layer(first.correct)
        env = policy_env(recording, self.policy, memorized_layers=memorized)
        assert self.policy.total_timesteps is not None
        self.agent.learn(env, self.policy.total_timesteps, logger=logger, progress_bar=progress_bar)
        results = report(
            self.agent,
            policy_env(recording, self.policy, "calibration").table,
            policy_env(recording, self.policy, "dev").table,
            self.metrics,
        )
        self._log_evaluation(results, number, logger)
        here.mkdir(parents=True, exist_ok=True)
        self.agent.save(here / "agent")
        unfinished = evaluation.with_suffix(".partial")
        unfinished.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        unfinished.rename(evaluation)
        # The next round has its own; a backbone is large.
        shutil.rmtree(before / "models", ignore_errors=True)
        return results

    def _log_evaluation(self, results: dict[str, Any], number: int, logger: Logger) -> None:
        point = results["policy"]["p > 1/2"]
        for name in ("accuracy", "saved_layers", "mean_exit_layer"):
            logger.record(f"eval/{name}", point[name])
        logger.record("eval/mean_reward", point["mean_return"])
        regret = results["hindsight"]["mean_return"] - point["mean_return"]
        logger.record("eval/regret", regret)
        logger.record("eval/full_depth_accuracy", results["full_depth"]["accuracy"])
        logger.dump(number)


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, str | float]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, with values that TensorBoard's table takes."""
    flat: dict[str, str | float] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            flat[prefix + key] = value if number else str(value)
    return flat
