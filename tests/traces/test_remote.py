"""Recordings elsewhere: pushed, fetched once, and refused where they are damaged."""

import gymnasium as gym
import numpy as np
import pytest

import cee_gym
from cee_gym.cli import main
from cee_gym.errors import TraceError
from cee_gym.traces import remote
from cee_gym.traces.recordings import home, open_split
from cee_gym.traces.remote import data_card, fetched, push
from tests.made_traces import write_recording

KNOWN = {"train", "calibration", "dev", "recording.json"}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path / "home"))
    fetched.cache_clear()


@pytest.fixture
def recording(tmp_path):
    made = write_recording(tmp_path / "recording")
    (made / "models").mkdir()
    (made / "models" / "weights.safetensors").write_text("large")
    return made


@pytest.fixture(params=["file", "memory"])
def address(request, tmp_path):
    import fsspec

    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return "memory://elsewhere/made"
    return f"file://{tmp_path}/elsewhere/made"


def test_what_is_pushed_is_what_is_opened(recording, address) -> None:
    assert push(recording, address) == address
    for split in ("train", "calibration", "dev"):
        here, there = open_split(recording, split), open_split(address, split)
        assert there.fingerprint == here.fingerprint
        assert there.path != here.path
        assert np.array_equal(there.states, here.states)
    (place,) = (home() / "fetched").iterdir()
    assert {path.name for path in place.iterdir()} == KNOWN


def test_an_environment_opens_an_address(recording, address) -> None:
    push(recording, address)
    env = gym.make("EarlyExit", trace=address, split="dev").unwrapped
    vector = gym.make_vec("EarlyExit", num_envs=2, trace=address, split="dev").unwrapped
    assert env.problem.trace is vector.problem.trace
    assert env.problem.trace.fingerprint == open_split(recording, "dev").fingerprint


def test_it_is_fetched_once_and_again_where_it_has_changed(recording, address, monkeypatch) -> None:
    push(recording, address)
    first = fetched(address)
    fetched.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(remote, "publish", lambda *_: pytest.fail("fetched again"))
        assert fetched(address) == first
    fetched.cache_clear()
    other = write_recording(recording.with_name("other"), n=30)
    push(other, address)
    assert fetched(address) != first
    assert len(open_split(address, "train")) == 30


def test_what_arrives_damaged_is_refused_and_not_kept(recording, tmp_path) -> None:
    address = f"file://{tmp_path}/elsewhere"
    push(recording, address)
    file = tmp_path / "elsewhere" / "dev" / "states.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TraceError, match="does not match its checksum"):
        fetched(address)
    assert not [path for path in (home() / "fetched").iterdir() if ".partial" not in path.name]
    file.write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))
    assert fetched(address).is_dir()


def test_names_that_lead_elsewhere_are_not_taken(recording, tmp_path) -> None:
    place = tmp_path / "elsewhere"
    push(recording, f"file://{place}")
    (place / "evil.py").write_text("raise SystemExit")
    (place / "train" / "deeper").mkdir()
    (place / "train" / "deeper" / "x.npy").write_text("")
    found = fetched(f"file://{place}")
    assert {path.name for path in found.iterdir()} == KNOWN
    assert not (found / "train" / "deeper").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere://x", "cannot be read"),
        ("memory://nothing/here", "neither a recording nor a trace"),
        ("file:///nope", "neither a recording nor a trace"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address, said) -> None:
    with pytest.raises(TraceError, match=said) as caught:
        gym.make("EarlyExit", trace=address)
    assert "\n" not in str(caught.value)


def test_only_a_whole_recording_is_pushed(recording, tmp_path) -> None:
    with pytest.raises(TraceError, match="no recording"):
        push(tmp_path, "memory://x")
    (recording / "dev" / "loss.npy").write_bytes(b"")
    with pytest.raises(TraceError, match="damaged"):
        push(recording, "memory://x")


def test_the_card_says_what_there_is_and_how_to_open_it(recording) -> None:
    card = data_card(recording, "hf://datasets/me/mine")
    trace = open_split(recording, "dev")
    assert 'trace="hf://datasets/me/mine"' in card
    assert f"| dev | {len(trace)} |" in card
    assert trace.fingerprint in card
    assert card.startswith("---\ntags:\n")


def test_the_hub_gets_a_data_set(recording, monkeypatch) -> None:
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **settings):
            calls.append((name, settings))
            return huggingface_hub.RepoUrl(f"https://huggingface.co/datasets/{name}")

        def upload_folder(self, *, repo_id, folder_path, **settings):
            files = sorted(str(f.relative_to(folder_path)) for f in folder_path.rglob("*.npy"))
            calls.append((repo_id, settings["repo_type"], files))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(recording, "me/mine", private=True) == "hf://datasets/me/mine"
    assert calls[0] == ("me/mine", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert calls[1][:2] == ("me/mine", "dataset")
    assert "train/states.npy" in calls[1][2]
    assert not any("weights" in name for name in calls[1][2])


def test_the_command_pushes_and_says_how_to_open(recording, capsys) -> None:
    main(["push", str(recording), "memory://by/command"])
    said = capsys.readouterr().out
    assert "trace='memory://by/command'" in said
    assert cee_gym.Trace.open(fetched("memory://by/command") / "dev").fingerprint
