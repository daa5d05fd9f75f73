"""The file of a study."""

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.studies.config import StudyConfig


def test_a_file_is_read_in_full(config_file) -> None:
    config = StudyConfig.read(config_file)
    assert [task.name for task in config.tasks] == ["first", "second"]
    assert [agent.label for agent in config.agents] == [
        "confidence",
        "policy-improvement",
        "learned",
    ]
    assert config.agents[2].set == {"learning_rate": 0.01}
    assert config.rewards[1].alpha == (0.05,)
    assert config.rewards[1].problem(None).quality == "cross_entropy"
    assert (config.seeds, config.saved_layers) == ((0, 1), (0.3, 0.5))
    assert [one.name for one in config.exits] == ["default"]


def test_names_alone_and_settings_of_a_recording(tmp_path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        'agents = ["confidence"]\n[[tasks]]\nname = "a"\nid = "EarlyExit-BERT-MRPC"\n'
        'backbone = "b"\n[[exits]]\nname = "paper"\n'
        'record = {recipe = "paper", warm_up = {epochs = 2}}\n'
        'alternation = {rounds = 2, phases = "together"}\n'
    )
    (exits,) = StudyConfig.read(file).exits
    assert (exits.record.recipe, exits.record.warm_up.epochs) == ("paper", 2)
    assert (exits.alternation.rounds, exits.alternation.phases) == (2, "together")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = [", "is not TOML"),
        ("", "has no tasks: give one"),
        ('agents = ["a"]\ntasks = []', "at least one of tasks"),
        ('agents = ["a"]\ntask = 1', "'task' is unknown: did you mean tasks"),
        ('agents = ["a"]\n[[tasks]]\nname = "t"', "either a recording, or id and backbone"),
        ('agents = ["a"]\n[[tasks]]\nrecording = "t"', "tasks 1 has no name"),
        ('agents = ["a", "a"]\n[[tasks]]\nname = "t"\nrecording = "r"', "agents has 'a' twice"),
        ('agents = [3]\n[[tasks]]\nname = "t"\nrecording = "r"', "agents 1 must be a table"),
        (
            'report_on = "train"\nagents = ["a"]\n[[tasks]]\nname = "t"\nrecording = "r"',
            "report_on must be dev or test",
        ),
        (
            'choose_on = "dev"\nagents = ["a"]\n[[tasks]]\nname = "t"\nrecording = "r"',
            "chosen on dev, which is reported, and that flatters",
        ),
        (
            'agents = ["a"]\nexits = [{name = "e", record = {recipe = "x"}}]\n'
            '[[tasks]]\nname = "t"\nrecording = "r"',
            "recipe must be one of",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(CeeGymError, match=message) as error:
        StudyConfig.read(file)
    assert "a.toml" in str(error.value)
    with pytest.raises(CeeGymError, match="there is no file"):
        StudyConfig.read(tmp_path / "nowhere.toml")
