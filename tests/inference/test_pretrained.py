"""Saved and loaded, a pipeline gives the same answers, at its own speed and at any other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cee_gym.agents import make_agent
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.report import report
from cee_gym.inference import EarlyExitPipeline
from cee_gym.inference.pretrained import find_policy, load_policy
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem_settings import ProblemSettings
from cee_gym.runs import Run
from tests.inference.answers import THRESHOLD, assert_same
from tests.made_runs import sentences, write_run

TEXTS = sentences(60, longest=12)  # those of the run


def load(directory: Path, **speed: float | str) -> EarlyExitPipeline:
    return EarlyExitPipeline.from_pretrained(directory, device="cpu", **speed)


def saved_layers(pipeline: EarlyExitPipeline) -> float:
    layers = sum(one["exit_layer"] for one in pipeline(TEXTS))
    return (3 * len(TEXTS) - layers) / (3 * len(TEXTS))


def test_saved_and_loaded_it_does_the_same(pipeline, tmp_path) -> None:
    texts = sentences(30)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert_same(loaded(texts), pipeline(texts))
    assert loaded.policy.threshold == THRESHOLD
    files = {str(file.relative_to(tmp_path / "saved")) for file in (tmp_path / "saved").rglob("*")}
    assert {"policy/policy.json", "policy/policy.safetensors", "pipeline.json"} <= files
    assert not [file for file in files if Path(file).suffix in (".bin", ".pt", ".pkl", ".py")]
    pipeline.at(Speed(threshold=0.0)).save_pretrained(tmp_path / "lowered")
    assert {one["exit_layer"] for one in load(tmp_path / "lowered")(texts)} == {1}


AGENTS = [
    ("patience", {"patience": 2}, ("probs",)),
    ("learning-to-exit", {}, ("hidden",)),
    ("cat", {}, ("hidden", "layer", "probs")),
    ("sb3:ppo", {"n_steps": 2, "num_envs": 32, "batch_size": 32}, ("hidden", "layer")),
]


@pytest.mark.parametrize(("name", "settings", "observe"), AGENTS, ids=lambda given: str(given))
def test_a_run_of_any_agent_is_saved_and_loaded(
    name, settings, observe, tmp_path, tiny_model, tiny_tokenizer
) -> None:
    problem = ProblemSettings(observe=observe)
    agent = make_agent(name, **settings)
    run = load(write_run(tmp_path, tiny_model, tiny_tokenizer, agent, problem))
    run.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert_same(saved(TEXTS), run(TEXTS))
    assert saved.policy.name == run.policy.name
    assert saved.policy.model == fingerprint(tiny_model)


# Speeds


def test_a_saved_run_keeps_its_points_and_speeds(run, tmp_path) -> None:
    opened = Run.open(run)
    problems = opened.problem("calibration"), opened.problem("dev")
    asked = Speed(threshold=0.7)
    opened.keep(report(opened.policy, *problems, opened.metrics, asked=asked)["points"])
    load(run, at="lost-1").save_pretrained(tmp_path / "saved")
    kept = {"own", "lost-0", "lost-0.5", "lost-1", "lost-2", "threshold-0.7"}
    policy, measured = find_policy(tmp_path / "saved")
    assert policy.threshold == opened.points["lost-1"].threshold
    assert policy.alpha == opened.points["lost-1"].alpha
    assert policy.chosen_on == opened.speeds.chosen_on
    assert set(measured.points) == kept
    assert measured.speeds == opened.speeds
    for point in kept:
        expected, found = opened.points[point], measured.points[point]
        assert (found.threshold, found.alpha) == (expected.threshold, expected.alpha)
        assert found.chosen_on == expected.chosen_on
        assert_same(load(tmp_path / "saved", at=point)(TEXTS), load(run, at=point)(TEXTS))


@pytest.mark.parametrize(
    "speed",
    [
        {"alpha": 1.5},
        {"saved_layers": 0.05},
        {"saved_layers": 0.3},
        {"saved_layers": 0.6},
        {"points_lost": 2.0},
        {"at": "lost-0.5"},
    ],
    ids=str,
)
def test_a_speed_is_the_same_with_the_run_and_without_it(run, tmp_path, speed) -> None:
    load(run, alpha=1.0).save_pretrained(tmp_path / "saved")
    chosen, served = load(run, **speed), load(tmp_path / "saved", **speed)
    assert (served.policy.threshold, served.policy.alpha) == (
        chosen.policy.threshold,
        chosen.policy.alpha,
    )
    assert_same(served(TEXTS), chosen(TEXTS))
    if "saved_layers" in speed:  # the texts are those it was chosen on
        assert saved_layers(served) >= speed["saved_layers"]


def test_a_budget_is_met_whatever_speed_was_saved(run, tmp_path) -> None:
    cautious = load(run, alpha=1.0).at(Speed(threshold=0.99))
    cautious.save_pretrained(tmp_path / "saved")
    served = load(tmp_path / "saved", saved_layers=0.3)
    assert saved_layers(served) >= 0.3
    assert served.policy.threshold == load(run, saved_layers=0.3).policy.threshold


def test_a_speed_that_is_not_to_be_had(run, pipeline, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="has a speed for every alpha from 0 to 2: choose one by"):
        load(run)
    with pytest.raises(CeeGymError, match="alpha and saved_layers each choose a speed: give only"):
        load(run, alpha=0.1, saved_layers=0.1)
    with pytest.raises(CeeGymError, match="threshold and saved_layers each choose a speed"):
        load(run, saved_layers=0.1, threshold=0.9)
    with pytest.raises(CeeGymError, match="at and points_lost each choose a speed"):
        load(run, at="own", points_lost=1.0)
    with pytest.raises(CeeGymError, match=r"alpha 9 is not in the range .*: give 0 to 2"):
        load(run, alpha=9.0)
    load(run, alpha=1.0).save_pretrained(tmp_path / "saved")
    for directory in (run, tmp_path / "saved"):
        with pytest.raises(CeeGymError, match="of the layers at most, not 99"):
            load(directory, saved_layers=0.99)
        with pytest.raises(CeeGymError, match="no point 'lots-1': did you mean lost-1"):
            load(directory, at="lots-1")
    pipeline.save_pretrained(tmp_path / "rule")
    with pytest.raises(CeeGymError, match="was learned for one price of a layer"):
        load(tmp_path / "rule", alpha=0.1)
    with pytest.raises(CeeGymError, match="nobody has measured how many layers this policy saves"):
        load(tmp_path / "rule", saved_layers=0.1)
    with pytest.raises(CeeGymError, match="there is no point 'own': none was kept"):
        load(tmp_path / "rule", at="own")
    assert load(tmp_path / "rule", threshold=0.6).policy.threshold == 0.6


def test_a_policy_alone_is_loaded_from_wherever_it_is(run, pipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    for directory in (tmp_path / "saved", tmp_path / "saved" / "policy"):
        assert load_policy(directory).threshold == THRESHOLD
        assert load_policy(directory, Speed(threshold=0.5)).threshold == 0.5
    assert load_policy(run, Speed(alpha=0.5)).alpha == 0.5
    for nothing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CeeGymError, match=f"there is no exit policy at {nothing}"):
            load_policy(nothing)


# Refusals


def test_a_run_is_not_written_over(run) -> None:
    config = (run / "config.json").read_text()
    with pytest.raises(CeeGymError, match="is the directory of a run: save to one of its own"):
        load(run, alpha=1.0).save_pretrained(run)
    assert (run / "config.json").read_text() == config


def test_a_policy_for_another_model_is_refused(pipeline, tmp_path) -> None:
    policy = replace(pipeline.policy, model=fingerprint(pipeline.model))
    EarlyExitPipeline(pipeline.model, pipeline.tokenizer, policy).save_pretrained(
        tmp_path / "saved"
    )
    with torch.no_grad():
        pipeline.model.heads[0].weight.add_(1)
    pipeline.model.save_pretrained(tmp_path / "saved")
    with pytest.raises(CeeGymError, match="learned on the states of model"):
        load(tmp_path / "saved")


def test_weights_that_were_cast_are_refused_when_they_are_saved_and_not_when_they_are_loaded(
    pipeline, tmp_path
) -> None:
    policy = replace(pipeline.policy, model=fingerprint(pipeline.model))
    pipeline = EarlyExitPipeline(pipeline.model, pipeline.tokenizer, policy)
    pipeline.model.to(torch.bfloat16)
    with pytest.raises(CeeGymError, match=r"now torch\.bfloat16, are not those that its policy"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_is_no_pipeline_is_refused_in_one_line(pipeline, tmp_path) -> None:
    saved = tmp_path / "saved"

    def refused() -> str:
        with pytest.raises(CeeGymError) as stop:
            load(saved)
        assert "\n" not in str(stop.value)
        return str(stop.value)

    assert f"there is no directory {saved}" in refused()
    saved.mkdir()
    assert "there is no model at" in refused()
    pipeline.save_pretrained(saved)
    (saved / "pipeline.json").write_text("{")
    assert f"the pipeline.json at {saved}/pipeline.json is damaged" in refused()
    (saved / "pipeline.json").write_text('{"version": 1}')
    assert "is of version 1, this cee-gym reads version 2: save it again" in refused()
    (saved / "pipeline.json").unlink()
    (saved / "policy" / "policy.json").unlink()
    assert "there is no exit policy at" in refused()
    (saved / "policy" / "policy.safetensors").unlink()
    (saved / "policy").rmdir()
    assert "there is no exit policy at" in refused()
    pipeline.model.backbone.config.save_pretrained(saved)
    assert "is of type bert and has no exits" in refused()
    (saved / "round-0").mkdir()
    assert f"{saved}/config.json is damaged" in refused()
    with pytest.raises(
        CeeGymError, match="is no directory here, and cannot be fetched from the hub"
    ):
        load(Path("nobody/nothing"))


def test_points_of_another_policy_are_damage(run, tmp_path) -> None:
    load(run, alpha=1.0).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "pipeline.json"
    document = json.loads(file.read_text())
    document["points"]["own"]["alpha"] = 5.0
    file.write_text(json.dumps(document))
    with pytest.raises(CeeGymError, match=r"pipeline.json is damaged .*: save it again"):
        load(tmp_path / "saved")


def assert_their_code_is_not_run(saved: Path, monkeypatch, message: str) -> None:
    """A directory whose configuration names code is refused, whoever says yes."""
    trace = saved.parent / "it-ran"
    (saved / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\nclass Theirs: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(CeeGymError, match=message):
        load(saved)
    assert not trace.exists()


def test_code_beside_the_weights_is_not_run_whoever_says_yes(
    pipeline, tmp_path, monkeypatch
) -> None:
    saved = tmp_path / "saved"
    pipeline.save_pretrained(saved)
    file = saved / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "Theirs"}
    config["auto_map"] = {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}
    file.write_text(json.dumps(config))
    assert_their_code_is_not_run(saved, monkeypatch, "no tokenizer at")


def test_code_that_a_backbone_names_is_not_run_whoever_says_yes(
    pipeline, tmp_path, monkeypatch
) -> None:
    saved = tmp_path / "saved"
    pipeline.save_pretrained(saved)
    file = saved / "config.json"
    # Of a type that transformers knows, and has no model for.
    theirs = {"model_type": "cee-gym-multi-exit", "auto_map": {"AutoModel": "theirs.Theirs"}}
    config = json.loads(file.read_text())
    config["backbone_config"] = {**theirs, "_name_or_path": str(saved)}
    file.write_text(json.dumps(config))
    assert_their_code_is_not_run(saved, monkeypatch, "there is no model at")


def test_a_run_on_a_recording_without_weights_says_so(run) -> None:
    models = run.with_name("recording") / "models"
    models.rename(run.with_name("models"))
    with pytest.raises(CeeGymError, match="which has no weights"):
        load(run, alpha=1.0)
    run.with_name("models").rename(models)
    assert load(run, alpha=1.0)("the cat")[0]["exit_layer"] >= 1


def test_it_is_pushed_whole_and_fetched_from_the_hub(pipeline, tmp_path, monkeypatch) -> None:
    hub = tmp_path / "hub"

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool):
            assert private
            assert exist_ok
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str):
            Path(folder_path).rename(hub / repo_id.replace("/", "--"))
            Path(folder_path).mkdir()
            return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/{commit_message}"})

    hub.mkdir()
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    url = pipeline.push_to_hub("tiny", private=True, token="secret", commit_message="first")
    assert url == "https://hub/me/tiny/first"
    assert 'from_pretrained("me/tiny")' in (hub / "me--tiny" / "README.md").read_text()

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert revision == "v1"
        files = {
            str(file.relative_to(hub / "me--tiny"))
            for file in (hub / "me--tiny").rglob("*")
            if file.is_file()
        }
        from huggingface_hub.utils import filter_repo_objects

        assert set(filter_repo_objects(files, allow_patterns=allow_patterns)) == files
        return str(hub / repo_id.replace("/", "--"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    fetched = EarlyExitPipeline.from_pretrained("me/tiny", revision="v1", device="cpu")
    assert_same(fetched("the cat sat"), pipeline("the cat sat"))


@pytest.mark.parametrize(
    "asked", [{"saved_layers": 0.1}, {"saved_layers": 0.3}, {"points_lost": 5.0}], ids=str
)
def test_a_speed_is_one_threshold_and_price_wherever_it_is_asked_for(run, tmp_path, asked) -> None:
    speed = Speed(**asked)
    loaded = load(run, alpha=1.0)
    loaded.save_pretrained(tmp_path / "saved")
    policy, problem = Run.open(run).policy, Run.open(run).problem("calibration")
    held = [
        load(run, **asked).policy,  # as predict does
        loaded.at(speed).policy,  # as the server does, for a request
        load(tmp_path / "saved", **asked).policy,
        load(tmp_path / "saved").at(speed).policy,
        load_policy(run, speed),
        policy.for_budget(**asked, on=problem),
        speed.choose(policy, measure_speeds(policy, problem)),
    ]
    assert len({(one.threshold, one.alpha, one.chosen_on) for one in held}) == 1


def test_documents_whose_keys_were_sorted_give_the_same_answers(run, tmp_path) -> None:
    before = load(run, alpha=1.0)
    before.save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").rglob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    after = load(tmp_path / "saved")
    assert after.policy.observe == before.policy.observe != tuple(sorted(before.policy.observe))
    assert_same(after(TEXTS), before(TEXTS))


def test_a_model_whose_classes_are_not_those_of_its_run_is_refused(run) -> None:
    file = Run.open(run).weights / "config.json"
    config = json.loads(file.read_text())
    names = config["id2label"]
    config["id2label"] = {"0": names["1"], "1": names["0"]}
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    file.write_text(json.dumps(config))
    with pytest.raises(CeeGymError, match="names its classes"):
        load(run)


def test_weights_may_be_read_by_whoever_may_read_the_rest(pipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    found = {path.name: path.stat().st_mode for path in tmp_path.glob("saved/**/*.safetensors")}
    assert found == dict.fromkeys(("model.safetensors", "policy.safetensors"), expected)
