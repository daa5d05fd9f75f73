"""What the arguments of the commands name, and what is no name."""

import pytest

from cee_gym.cli.arguments import SpeedArguments, parse_settings
from cee_gym.errors import CeeGymError
from cee_gym.policies.speeds import Speed
from tests.cli.commands import refused


def test_unknown_ids_agents_and_hyper_parameters_name_the_nearest(capsys) -> None:
    assert "did you mean EarlyExit-BERT-MRPC" in refused(
        capsys, "build", "EarlyExit-BERT-MRCP", "--backbone", "x"
    )
    assert "did you mean reinforce" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--agent", "reinforc"
    )
    assert "learning_rate" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--set", "learnin_rate=1"
    )
    assert "not of type float" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--set", "learning_rate=fast"
    )
    assert "cannot be imported" in refused(capsys, "train", "no_such_module:EarlyExit-BERT-RTE")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rate=1", 1.0),
        ("rate=1e-3", 1e-3),
        ("count=1e5", 100_000),
        ("flag=false", False),
        ("name=true", "true"),
        ("name=with=equals", "with=equals"),
        ("nothing=null", None),
        ("nothing=[1, 2]", [1, 2]),
        ("nothing=word", "word"),
        ("some=[64, 64]", [64, 64]),
        ('more={"net_arch": [8]}', {"net_arch": [8]}),
    ],
)
def test_a_setting_is_read_as_what_its_default_is(setting, value) -> None:
    (given,) = parse_settings("some-agent", (setting,), DEFAULTS).values()
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("rate=true", "float"),
        ("count=1.5", "int"),
        ("count=false", "int"),
        ("flag=False", "bool"),
        ("flag=1", "bool"),
        ("some=1", "list"),
        ("more=[]", "dict"),
    ],
)
def test_a_setting_of_another_type_is_refused(setting, kind) -> None:
    with pytest.raises(CeeGymError, match=f"not of type {kind}"):
        parse_settings("some-agent", (setting,), DEFAULTS)


DEFAULTS = {
    **{"rate": 0.1, "count": 1, "flag": True, "name": "", "nothing": None},
    **{"some": [1], "more": {"a": 1}},
}


def test_a_speed_is_one_of_its_arguments() -> None:
    assert SpeedArguments().speed() == Speed()
    assert SpeedArguments(at="lost-1").speed() == Speed(at="lost-1")
    assert SpeedArguments(saved_layers=0.5).speed() == Speed(saved_layers=0.5)
    with pytest.raises(CeeGymError, match="threshold and points_lost each choose a speed"):
        SpeedArguments(threshold=0.5, points_lost=1.0).speed()
