"""What is installed: the same import names by every way, and nothing that is not needed."""

import importlib.util
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
# What a recorded environment needs: numpy, gymnasium, and what gymnasium itself imports.
NEEDED = ("numpy", "gymnasium", "cloudpickle", "typing_extensions", "farama_notifications")

IN_AN_EMPTY_VENV = """
import sys
import gymnasium as gym, cee_gym
env = gym.make("EarlyExit-BERT-RTE")
observation, info = env.reset(seed=0)
while True:
    observation, reward, terminated, truncated, info = env.step(0)
    if terminated:
        break
assert info["exit_layer"] == 12
envs = gym.make_vec("cee_gym:EarlyExit-BERT-RTE", num_envs=8)
envs.reset(seed=0)
envs.step(envs.action_space.sample())
assert env.unwrapped.headroom().rows == len(env.unwrapped.problem)
from cee_gym import Reward, Trace, memorized_layer
for name in ("torch", "transformers", "stable_baselines3", "datasets", "sklearn"):
    assert name not in sys.modules, name
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} is installed here: the test proves nothing")
assert "site-packages" in cee_gym.__file__, cee_gym.__file__
for name in ("agents", "envs"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} is a top-level module")
print("ok")
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a source distribution, which proves that one complete too."""
    out = tmp_path_factory.mktemp("dist")
    source = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", source, out, cwd=ROOT).splitlines()[-1]
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--no-index", "--wheel-dir", out, out / name),
        cwd=out,
    )
    return next(out.glob("*.whl"))


def test_a_recorded_environment_needs_only_numpy_and_gymnasium(wheel, tmp_path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    python = tmp_path / "venv" / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=tmp_path)
    for name in NEEDED:
        origin = Path(importlib.util.find_spec(name).origin)
        found = origin.parent if origin.name == "__init__.py" else origin
        (site / found.name).symlink_to(found)
        if (libraries := found.with_name(f"{name}.libs")).exists():
            (site / libraries.name).symlink_to(libraries)
    out = run(python, "-c", IN_AN_EMPTY_VENV, cwd=tmp_path)
    assert out.strip() == "ok"


def test_the_wheel_holds_the_recordings_and_no_text(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sizes = {item.filename: item.file_size for item in archive.infolist()}
        headers = [archive.read(n).decode() for n in names if n.endswith((".json", "METADATA"))]
    for id in ("EarlyExit-BERT-RTE", "EarlyExit-BERT-SST-2", "EarlyExit-ToyBERT-Clauses"):
        recorded = [n for n in names if f"shipped/{id}/" in n]
        assert {n.split("/")[3] for n in recorded} >= {"train", "calibration", "dev"}
        assert sum(sizes[n] for n in recorded) <= 16.1e6
    assert wheel.stat().st_size <= 40e6
    assert "cee_gym/agents/reinforce.py" in names
    assert "cee_gym/envs/recorded.py" in names
    assert not any(n.startswith(("agents/", "envs/", "tests/")) for n in names)
    assert not any("sentence1" in text for text in headers)


def test_every_package_is_listed_in_setup() -> None:
    listed = (ROOT / "setup.py").read_text()
    on_disk = [f"cee_gym.{name}" for name in find_packages(str(ROOT / "cee_gym"))]
    for name in ["cee_gym", *on_disk, "cee_gym.agents", "cee_gym.envs"]:
        assert f'"{name}"' in listed, name


def test_the_folders_are_not_importable_by_their_bare_names() -> None:
    for name in ("agents", "envs"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
        )
        assert f"cee_gym.{name}: import it by that name" in done.stderr


def test_importing_is_light_and_quiet() -> None:
    code = (
        "import sys, cee_gym; "
        "heavy = {'torch', 'transformers', 'stable_baselines3', 'datasets', 'matplotlib'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_public_names_are_there() -> None:
    import cee_gym
    from cee_gym.agents import ExpectedReturn, Reinforce
    from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv, LiveEarlyExitEnv
    from cee_gym.evaluation import accuracy_speed_curve, evaluate

    public = (
        *(getattr(cee_gym, name) for name in cee_gym.__all__),
        *(ExpectedReturn, Reinforce, EarlyExitEnv, EarlyExitVectorEnv, LiveEarlyExitEnv),
        *(accuracy_speed_curve, evaluate),
    )
    for thing in public:
        assert thing.__module__.startswith("cee_gym."), thing
        assert thing.__doc__
    assert {"ExitPolicy", "Problem", "Reward", "Trace", "register_quality"} <= {*cee_gym.__all__}
    with pytest.raises(AttributeError, match="no attribute 'Pool'"):
        _ = cee_gym.Pool
