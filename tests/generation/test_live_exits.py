"""A run over tokens, from the first phase to the last."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cee_gym.backbones.sequences import TokenSequences
from cee_gym.errors import CeeGymError
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.live import measure_live, run_live
from cee_gym.intervals import error_of_ratio
from cee_gym.runs import Run
from cee_gym.traces.recordings import open_split
from cee_gym.training import token_phases
from cee_gym.training.config import FitConfig, RecordConfig
from cee_gym.training.token_setup import TokenSetup
from tests.generation.conftest import small_setup, small_trainer


def test_a_run_is_whole_and_resumes(token_run: Path) -> None:
    run = Run.open(token_run)
    results = run.evaluation
    assert run.newest_round.name == "round-1"
    live = results["live"]
    assert live["full_depth"]["mean_exit_layer"] == 5
    assert live["own"]["saved_layers"] > 0
    # What is recorded under a policy at its own speed is what that policy comes to live.
    assert small_trainer(token_run).train(resume=True, progress_bar=False) == results
    described = json.loads((run.recording / "recording.json").read_text())
    assert described["under"] is not None
    assert not set(described["fitted_to"]["deployed"]) & set(
        open_split(run.recording, "train").row_ids
    )


def test_adapters_learn_and_the_backbone_stays(tmp_path: Path) -> None:
    setup = small_setup()
    token_phases.warm_up(setup, tmp_path / "models")
    trained = MultiExitDecoder.load(tmp_path / "models" / "deployed").eval()
    fresh = setup.initial_model().eval()
    for mine, own in zip(trained.backbone.parameters(), fresh.backbone.parameters(), strict=True):
        assert torch.equal(mine, own)
    text = setup.text["dev"]
    with torch.no_grad():
        ids, decides = text.batch(np.arange(6)), text.decides(np.arange(6))
        states = [s[decides] for s in fresh(ids)]
        full = fresh.read(states[-1]).argmax(-1)
        for exit in range(2, 5):
            before = (fresh.answer(states[exit - 1], exit).argmax(-1) == full).float().mean()
            after = (trained.answer(states[exit - 1], exit).argmax(-1) == full).float().mean()
            assert after > before


def test_training_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_phases, "UPDATES_A_CHECKPOINT", 2)
    setup = small_setup()
    token_phases.warm_up(setup, tmp_path / "whole")
    descent, updates = token_phases._adapter_descent, [0]

    def stopping(*given: object):  # type: ignore[no-untyped-def]
        descend = descent(*given)  # type: ignore[arg-type]

        def one(*batch: torch.Tensor) -> float:
            updates[0] += 1
            if updates[0] == 4:
                raise KeyboardInterrupt
            return descend(*batch)

        return one

    monkeypatch.setattr(token_phases, "_adapter_descent", stopping)
    with pytest.raises(KeyboardInterrupt):
        token_phases.warm_up(setup, tmp_path / "models")
    token_phases.warm_up(setup, tmp_path / "models")
    whole, again = (
        MultiExitDecoder.load(tmp_path / name / "deployed").fingerprint
        for name in ("whole", "models")
    )
    assert whole == again


def test_lora_is_merged_into_the_weights(token_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    decoder = MultiExitDecoder.load(Run.open(token_run).weights)
    names = set(decoder.state_dict())
    merge = token_phases._add_lora(decoder, 4)
    trained = [name for name, p in decoder.named_parameters() if p.requires_grad]
    assert any("lora_" in name for name in trained)
    assert not any("base_layer" in name for name in trained)
    ids = torch.tensor([[1, 5, 9]])
    for name, parameter in decoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        before = decoder(ids)[-1]
        merge()
        torch.testing.assert_close(decoder(ids)[-1], before, rtol=1e-4, atol=1e-4)
    assert set(decoder.state_dict()) == names


def test_live_is_what_the_trace_under_the_policy_says(token_run: Path) -> None:
    """A trace that is recorded under a policy says of that policy what the running model does."""
    run = Run.open(token_run)
    decoder = MultiExitDecoder.load(run.weights).eval()
    text = TokenSequences.load(run.recording / "tokens-dev.safetensors")
    dev = open_split(run.recording, "dev")
    from cee_gym.policies.base import ExitPolicy

    under = ExitPolicy.load(token_run / "round-0" / "agent")
    under = under.of_another_model()
    problem = run.problem("dev")
    exits = under.exit_layers(under.scores(problem.observe()))
    live = run_live(decoder, under, text, dev.labels)
    traced = np.bincount(dev.sequence, exits.astype(float))  # type: ignore[arg-type]
    np.testing.assert_allclose(live.depth, traced, atol=2)  # a score may round across
    right = problem.correct[np.arange(len(exits)), exits - 1].sum()
    assert abs(live.right.sum() - right) <= 3


def test_the_error_of_a_ratio_is_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 50, 300)
    sums = rng.binomial(counts, rng.beta(5, 2, 300)).astype(float)
    draws = rng.integers(0, 300, (4000, 300))
    spread = (sums[draws].sum(1) / counts[draws].sum(1)).std()
    assert error_of_ratio(sums, counts) == pytest.approx(spread, rel=0.1)


def test_full_depth_agrees_with_itself() -> None:
    setup = small_setup()
    decoder, text = setup.initial_model().eval(), setup.text["dev"]
    with torch.no_grad():
        answers = np.concatenate(
            [
                decoder.read(decoder(text.batch(np.array([r])))[-1][text.decides(np.array([r]))])
                .argmax(-1)
                .numpy()
                for r in range(len(text))
            ]
        )
    found = measure_live(decoder, None, text, answers)
    assert found["agreement"] == 1.0
    assert found["saved_layers"] == 0.0


def test_settings_of_classifiers_are_refused() -> None:
    setup = small_setup()
    for config in (
        RecordConfig(recipe="probe"),
        RecordConfig(folds=4),
        RecordConfig(pooling="mean"),
    ):
        with pytest.raises(CeeGymError, match="classification"):
            TokenSetup(setup.task, setup.backbone, setup.splits, config, setup.tokens)
    with pytest.raises(CeeGymError, match="context"):
        TokenSetup(
            setup.task, setup.backbone, setup.splits, RecordConfig(max_tokens=1000), setup.tokens
        ).initial_model()
    assert FitConfig().epochs == 5
