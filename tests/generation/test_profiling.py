"""What a decoding step takes, LM heads among it."""

from pathlib import Path

import numpy as np
import pytest

from cee_gym.cli import main
from cee_gym.cost import CostModel
from cee_gym.errors import CeeGymError
from cee_gym.generation.profiling import profile_decoder, reads_head
from cee_gym.measuring import predict
from cee_gym.runs import Run
from tests.cli.commands import refused
from tests.generation.decoders import CONFIGS, decoder_of, policy_for

SIZES = {"batch_sizes": (1, 2), "lengths": (4, 8), "seconds": 0}


@pytest.mark.parametrize(
    ("observe", "reads"),
    [
        (("hidden", "layer"), False),
        (("layer", "alpha"), False),
        (("confidence",), True),
        (("hidden", "margin"), True),
        (("agreement",), True),
        (("previous",), True),
    ],
)
def test_parts_that_read_a_head_are_known(observe: tuple[str, ...], reads: bool) -> None:
    assert reads_head(decoder_of("llama"), observe) is reads


@pytest.mark.parametrize("family", CONFIGS)
def test_costs_rise_and_full_depth_costs_its_layers(family: str) -> None:
    costs = profile_decoder(decoder_of(family, (1, 3, 4)), **SIZES)
    assert costs.depths == (1, 3, 4)
    of_exit = costs.layer_costs()
    assert (np.diff(of_exit) > 0).all()
    start = costs.seconds(costs.embedding, *costs.typical)
    each = costs.seconds(costs.layers + costs.policy, *costs.typical).sum() / 4
    assert of_exit[-1] == pytest.approx(4 + start / each)


def test_a_head_is_paid_once_or_at_each_exit() -> None:
    decoder = decoder_of("llama", (2, 3, 4))
    without = profile_decoder(decoder, observe=("hidden",), **SIZES)
    looking = profile_decoder(decoder, observe=("confidence",), **SIZES)
    assert not without.heads.any()
    assert without.policy[:-1].all()
    assert looking.heads.all()
    assert not looking.policy.any()


def test_two_layers_since_the_exit_before_cost_more_than_one() -> None:
    costs = profile_decoder(decoder_of("llama", (1, 3, 4)), **{**SIZES, "seconds": 0.5})
    assert costs.layers[1].mean() > 1.3 * costs.layers[2].mean()


def test_decisions_of_a_policy_are_measured() -> None:
    decoder = decoder_of("llama", (2, 3, 4))
    costs = profile_decoder(decoder, policy_for(decoder), **SIZES)
    assert costs.policy[:-1].all()
    exits = np.array([1, 3, 2])
    found = predict(costs, exits, np.full(3, 8), 1)
    assert found.wall_clock_speedup > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": (1,)}, "at least two"),
        ({"lengths": (0, 8)}, "from 1 up"),
        ({"lengths": (8, 64)}, "63"),
        ({"observe": ("hiden",)}, "hiden"),
    ],
)
def test_what_cannot_be_measured(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CeeGymError, match=message):
        profile_decoder(decoder_of("llama"), **{**SIZES, **settings})


def test_depths_must_fit() -> None:
    costs = profile_decoder(decoder_of("llama", (2, 4)), **SIZES)
    for depths in ((2,), (4, 2), (0, 4)):
        with pytest.raises(CeeGymError, match="depths"):
            CostModel(**{**vars(costs), "depths": depths})


def test_command(
    token_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ("--batch-sizes", "1", "2", "--lengths", "8", "16", "--seconds", "0")
    run = Run.open(token_run)
    weights, recording = run.weights, str(run.recording)
    main(["profile", str(weights), *sizes, "--output", "costs.json"])
    said = capsys.readouterr().out
    assert "exits at" in said
    assert "every token" in said
    costs = CostModel.load("costs.json")
    train = ("train", "--trace", recording, "--agent", "longstaff-schwartz")
    main([*train, "--cost", "costs.json", "--output", "priced"])
    capsys.readouterr()
    looking = ("profile", str(weights), *sizes)
    main([*looking, "--policy", "priced", "--trace", recording])
    said = capsys.readouterr().out
    assert "tokens of dev: layer speed-up" in said
    assert CostModel.load("profile.json").depths == costs.depths
    assert "classifier" in refused(
        capsys, *looking, "--policy", "priced", "--trace", recording, "--data", "x"
    )
    assert "--observe" in refused(capsys, *looking, "--policy", "priced", "--observe", "margin")
