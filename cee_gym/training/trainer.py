"""ConsistentEE, end to end: warm-up, then policy phase and backbone phase in turn."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger

from cee_gym import processes
from cee_gym.agents.base import Agent, load_agent
from cee_gym.agents.network_agent import GradientAgent
from cee_gym.agents.registry import full_agent_name, preset_for
from cee_gym.documents import publish, read_document, write_document
from cee_gym.errors import CeeGymError, check_number
from cee_gym.evaluation.report import report
from cee_gym.hardness import memorized_layer
from cee_gym.hold import hold
from cee_gym.problem_settings import ProblemSettings
from cee_gym.runs import CONFIG, EVALUATION, is_run
from cee_gym.traces.recordings import local, open_split, recorded_splits, where
from cee_gym.training.config import AlternationConfig, refuse_changed
from cee_gym.training.partition import DEPLOYED
from cee_gym.training.phases import backbone_phase, problem_env, record, warm_up
from cee_gym.training.setup import Setup
from cee_gym.training.tensorboard import BACKBONE, WARM_UP, log_round, log_settings, run_logger
from cee_gym.training.token_setup import TokenSetup


class ConsistentEETrainer:
    """Trains a policy, or a policy and its backbone in turn.

    Round 0 warms up the backbone, records it and trains the policy on the recording. Every further
    round trains the backbone at the exits of the policy, records it again and goes on with the
    policy. All of it is under `output`, see `cee_gym.runs`, with the curves in TensorBoard's file.
    Several processes share out warm-up, recording and backbone phase, see `cee_gym.processes`; the
    policy learns in the main one.

    Args:
        agent: not trained yet.
        output: the directory of the run.
        setup: text and backbone; None to train the policy on a finished recording.
        recording: the path or address of the finished recording; None to make one.
        problem: what is observed and paid; what it leaves open is the agent's preset's.
        total_timesteps: decisions a policy phase learns from; by default the preset's.
        alternation: the rounds.
        metrics: of the task, the leading one first.
    """

    def __init__(
        self,
        agent: Agent,
        output: Path,
        *,
        setup: Setup | TokenSetup | None = None,
        recording: str | Path | None = None,
        problem: ProblemSettings | None = None,
        total_timesteps: int | None = None,
        alternation: AlternationConfig | None = None,
        metrics: tuple[str, ...] = ("accuracy",),
    ) -> None:
        if (setup is None) == (recording is None):
            raise CeeGymError("give either a setup, to record a backbone, or a finished recording")
        self.agent = agent
        self.output = Path(output)
        self.setup = setup
        self.recording = None if recording is None else local(recording)
        self._given = None if recording is None else where(recording)
        self.alternation = alternation or AlternationConfig()
        self.metrics = metrics
        if self.setup is None and self.alternation.rounds:
            raise CeeGymError(
                f"{self.alternation.rounds} rounds train the backbone as well, which takes its "
                "weights and text: give --backbone and --data, or --rounds 0"
            )
        if self.setup is not None and problem is not None and problem.layer_costs is not None:
            raise CeeGymError(
                f"the profile {problem.cost} is of one model, and this run records one of its own: "
                "build, then profile and train on that recording, without --backbone and --rounds"
            )
        if total_timesteps is not None:
            check_number("total_timesteps", total_timesteps, 1)
        preset = preset_for(full_agent_name(agent.name))
        self.problem = (problem or ProblemSettings()).observing(preset.observe)
        self.total_timesteps = total_timesteps or preset.total_timesteps

    def description(self) -> dict[str, Any]:
        """Everything that decides the outcome of the run, JSON-able."""
        return {
            "agent": full_agent_name(self.agent.name),
            "hyperparameters": self.agent.hyperparameters(),
            "problem": self.problem.to_json(),
            "total_timesteps": self.total_timesteps,
            "cost": self.problem.layer_costs,
            "alternation": asdict(self.alternation),
            "metrics": list(self.metrics),
            "recording": self._given,
            "task": None if self.setup is None else self.setup.task.to_json(),
            "backbone": None if self.setup is None else self.setup.backbone,
            "text": None if self.setup is None else self.setup.text_fingerprint,
            "record": self._recorded_how(),
        }

    def _recorded_how(self) -> dict[str, Any] | None:
        if self.setup is None:
            return None
        if isinstance(self.setup, TokenSetup):
            return self.setup.to_json()
        return asdict(self.setup.config)

    def train(self, *, resume: bool = False, progress_bar: bool = True) -> dict[str, Any]:
        """Runs what is not done yet.

        Args:
            resume: go on with the run in `output`, perhaps with more rounds than it was begun with;
                without it `output` must not hold one.
            progress_bar: show progress and time left.

        Returns:
            The evaluation of the last round on dev, see `cee_gym.evaluation.report.report`.

        Raises:
            CeeGymError: if another process is writing `output`; if it holds a run and `resume` is
                not given, or one with other settings; or if the agent cannot learn from these
                observations.
        """
        self._check_problem()
        if self.recording is not None:
            for split in recorded_splits(self.recording):
                open_split(self.recording, split).verify()
        with hold(self.output):
            if processes.is_main():
                self._claim_output(resume)
            return self._rounds(progress_bar)

    def _rounds(self, progress_bar: bool) -> dict[str, Any]:
        settings = self.description()
        phases = []
        if isinstance(self.setup, Setup):
            trained = (self.setup.objective is not None, self.alternation.rounds > 0)
            phases = [name for name, some in zip((WARM_UP, BACKBONE), trained, strict=True) if some]
        logger = run_logger(self.output, settings, phases) if processes.is_main() else None
        results: dict[str, Any] = {}
        for number in range(self.alternation.rounds + 1):
            results = self._round(number, logger, progress_bar)
        if logger is not None:
            log_settings(logger, settings, results)
            logger.close()
        return results

    def _check_problem(self) -> None:
        """Refuses, before any work, what cannot be observed, learned from or paid."""
        self.problem.make_reward()
        assert self.problem.observe is not None
        parts = tuple(part.rpartition(":")[2] for part in self.problem.observe)
        self.agent.check_observe(parts)
        if isinstance(self.setup, TokenSetup):
            refuse_changed(
                self.alternation,
                ["backbone_loss", "phases"],
                "classifiers: a decoder is trained at the exits its policy takes, in turn with it",
            )
        together = self.alternation.rounds and self.alternation.phases == "together"
        if processes.count() > 1 and self.setup is None:
            raise CeeGymError(
                "a policy learns from a recording in one process: start this without accelerate "
                "launch or torchrun, or give a backbone to be trained and recorded"
            )
        if processes.count() > 1 and together:
            raise CeeGymError(
                "phases together runs as one process, whose batches the policy learns from: leave "
                "phases out, or start this without accelerate launch or torchrun"
            )
        if together and not isinstance(self.agent, GradientAgent):
            raise CeeGymError(
                "phases together takes an agent that learns by gradient steps, such as reinforce "
                f"or expected-return, not {self.agent.name}: leave it out"
            )

    def _claim_output(self, resume: bool) -> None:
        file = self.output / CONFIG
        description = json.loads(json.dumps(self.description()))
        if is_run(self.output):
            if not resume:
                raise CeeGymError(
                    f"{self.output} holds a run already: give --resume to go on with it, or "
                    "another --output"
                )
            remedy = "the settings of this run are unknown, so give another --output"
            before = read_document(file, "run's config.json", remedy=remedy)
            rounds = description["alternation"]["rounds"]
            try:
                if before["alternation"]["rounds"] < rounds:  # a run may be given more
                    before["alternation"]["rounds"] = rounds
            except (KeyError, TypeError):
                raise CeeGymError(f"{file} is damaged: {remedy}") from None
            if changed := [key for key in before if before[key] != description.get(key)]:
                raise CeeGymError(
                    f"{self.output} was begun with another {', '.join(changed)}: repeat its "
                    "settings (config.json), or give another --output"
                )
        self.output.mkdir(parents=True, exist_ok=True)
        write_document(file, description)

    def _round(self, number: int, logger: Logger | None, progress_bar: bool) -> dict[str, Any]:
        here = self.output / f"round-{number}"
        evaluation = here / EVALUATION
        if processes.agree(evaluation.exists()):
            self.agent = load_agent(here / "agent")
            return read_document(evaluation, "evaluation", remedy="remove it and resume")
        recording = self.recording
        if self.setup is not None:
            recording = here / "recording"
            if isinstance(self.setup, TokenSetup):
                self._make_tokens(self.setup, number, logger)
            else:
                self._make_texts(self.setup, number, logger)
        assert recording is not None
        results = processes.once(
            lambda: self._policy_phase(number, recording, logger, progress_bar)
        )
        if not processes.is_main():
            self.agent = load_agent(here / "agent")
        return results

    def _policy_phase(
        self, number: int, recording: Path, logger: Logger | None, progress_bar: bool
    ) -> dict[str, Any]:
        """Trains the policy on the recording of a round, and evaluates it."""
        assert logger is not None
        here = self.output / f"round-{number}"
        before = self.output / f"round-{number - 1}"
        for split in ("calibration", "dev"):
            open_split(recording, split)  # refuses before learning what could not be evaluated
        memorized = None
        if number and self.alternation.memorized_layer == "once":
            first = open_split(self.output / "round-0" / "recording", "train")
            memorized = memorized_layer(first.correct)
        # The agent is saved before it is evaluated, so that nothing is lost if that fails.
        if (here / "agent").exists():
            self.agent = load_agent(here / "agent")
        else:
            env = problem_env(recording, self.problem, memorized_layers=memorized)
            logger.record("time/round", number)
            logger.dump(self.agent.timesteps)
            self.agent.learn(
                env,
                self.total_timesteps,
                logger=logger,
                progress_bar=progress_bar,
                calibration=self.problem.problem(recording, "calibration"),
            )
            self.agent.save(here / "agent.partial")
            publish(here / "agent.partial", here / "agent")
        results = report(
            self.agent.policy,
            self.problem.problem(recording, "calibration"),
            self.problem.problem(recording, "dev"),
            self.metrics,
            name=self.agent.name,
        )
        if isinstance(self.setup, TokenSetup):
            from cee_gym.generation.live import live_points

            weights = here / "models" / DEPLOYED
            results["live"] = live_points(weights, recording, "dev", self.agent.policy, results)
        log_round(logger, results, number, self.agent.timesteps)
        write_document(here / EVALUATION, results)
        # The next round has its own; a backbone is large.
        shutil.rmtree(before / "models", ignore_errors=True)
        return results

    def _make_texts(self, setup: Setup, number: int, logger: Logger | None) -> None:
        """Models and recording of a round, of a classifier."""
        models = self.output / f"round-{number}" / "models"
        if number == 0:
            warm_up(setup, models, logger)
        else:
            self.agent = backbone_phase(
                setup,
                self.output / f"round-{number - 1}" / "models",
                models,
                self.agent,
                self.problem,
                self.alternation,
                number,
                logger,
            )
        record(setup, models, models.with_name("recording"))

    def _make_tokens(self, setup: TokenSetup, number: int, logger: Logger | None) -> None:
        """Models and recording of a round, of a decoder; later rounds are under the policy."""
        from cee_gym.training import token_phases

        models = self.output / f"round-{number}" / "models"
        policy = None
        if number == 0:
            token_phases.warm_up(setup, models, logger)
        else:
            policy = self.agent.policy.at_some_price()
            before = self.output / f"round-{number - 1}" / "models"
            token_phases.backbone_phase(
                setup, before, models, policy, self.alternation, number, logger
            )
        token_phases.record(setup, models, models.with_name("recording"), policy)
