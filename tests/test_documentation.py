"""What the documentation shows is run as it stands: README, pages, examples and notebooks."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import nbformat
import pytest
import yaml

from cee_gym.cli import _parsed
from cee_gym.serving.access import TOKEN
from cee_gym.serving.server import MOST_SECONDS_TO_STOP
from cee_gym.traces.recordings import shipped_backbone
from tests.conftest import WORDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

# The guide is one path: what a page makes, those after it use.
GUIDE = [
    DOCS / "tutorial.md",
    *(
        DOCS / "guide" / f"{name}.md"
        for name in (
            *("concepts", "environment", "train", "your-own-data", "choose-a-speed"),
            *("guarantee", "deploy", "serve", "measure", "study", "report", "generation"),
        )
    ),
]
ALONE = [ROOT / "README.md", DOCS / "results" / "exits.md", *sorted((DOCS / "agents").glob("*.md"))]
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

RUN = """
import runpy, sys
from cee_gym.cli import main
for kind, what in {steps!r}:
    print(">>>", what if kind == "sh" else kind, flush=True)
    if kind == "python":
        exec(compile(what, "page", "exec"), {{"__name__": "__main__"}})
    else:
        code = main(what)
        assert not code, (what, code)
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page that are to be run, or read as a file named like the page."""
    return re.findall(
        r"^```(python|sh|toml)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )


def commands(page: Path) -> list[str]:
    """The commands of its `sh` blocks."""
    lines = [line for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]
    return [line.split("  #")[0] for line in lines if line.strip()]


@contextlib.contextmanager
def running(command: str, cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """A command that does not end by itself, once its port answers."""
    words = shlex.split(command)
    port = int(words[words.index("--port") + 1]) if "--port" in words else 8000
    with contextlib.ExitStack() as held:
        # Tests that run at the same time use one port after another.
        lock = held.enter_context(Path(gettempdir(), f"cee-gym-port-{port}").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = held.enter_context(
            subprocess.Popen(words, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True)
        )
        try:
            for _ in range(600):
                assert process.poll() is None, process.stderr.read()
                with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
                    break
                time.sleep(0.1)
            else:
                raise AssertionError(f"{command} does not answer")
            yield
        finally:
            process.terminate()


def run_pages(pages: list[Path], cwd: Path) -> None:
    """Runs all of some pages, one after another, in one directory."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CEE_GYM_HOME": str(cwd / "home"),
        "COLUMNS": "80",
    }
    waiting: list[tuple[str, Any]] = []

    def flush() -> None:
        if waiting:
            script = RUN.format(steps=waiting)
            words = [sys.executable, "-W", "error::DeprecationWarning:cee_gym", "-c", script]
            done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
            waiting.clear()

    with contextlib.ExitStack() as services:
        for page in pages:
            for kind, text in blocks(page):
                if kind == "toml":
                    flush()
                    (cwd / f"{page.stem}.toml").write_text(text)
                    continue
                if kind == "python":
                    waiting.append((kind, text))
                    continue
                for line in filter(str.strip, text.splitlines()):
                    command = line.split("  #")[0]
                    if command.startswith(("cee-gym serve", "tensorboard")):
                        flush()
                        services.enter_context(running(command, cwd, env))
                    elif command.startswith("cee-gym"):
                        waiting.append((kind, shlex.split(command)[1:]))
                    else:
                        flush()
                        done = subprocess.run(
                            command, shell=True, cwd=cwd, env=env, capture_output=True, text=True
                        )
                        assert done.returncode == 0, (command, done.stderr[-2000:])
                        assert '"detail"' not in done.stdout, (command, done.stdout)
        flush()


@pytest.fixture
def there(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    """A directory with what a reader is told to have: a file of reviews, models and data."""
    rows = [(f"a good {word}", "positive") for word in WORDS[:30]]
    rows += [(f"a bad {word}", "negative") for word in WORDS[:30]]
    lines = [f'"{text}",{label}' for text, label in rows * 2]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (tmp_path / "texts.txt").write_text("a good film\na bad film\n")
    for name in ("google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"):
        tiny_model.backbone.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "mrpc").mkdir()
    for split in ("train", "dev"):
        pairs = [f"{i % 2}\t1\t2\ta good {w}\ta bad {w}" for i, w in enumerate(WORDS[:30] * 2)]
        head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        (tmp_path / "mrpc" / f"{split}.tsv").write_text("\n".join([head, *pairs]) + "\n")
    return tmp_path


@pytest.fixture
def with_decoder(there) -> Path:
    """The same, with a small LLaMA, instructions for it and prompts."""
    stories = shipped_backbone("EarlyExit-TinyLLaMA-Stories")
    shutil.copytree(stories, there / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    asked = [
        {"instruction": f"Say {n} .", "context": "", "response": f"{n} it is , said she ."}
        for n in range(60)
    ]
    (there / "dolly.json").write_text("\n".join(json.dumps(row) for row in asked))
    (there / "prompts.jsonl").write_text('{"prompt": "Say one ."}\n{"prompt": "Say two ."}\n')
    return there


def test_the_guide_runs_in_order_as_it_stands(with_decoder) -> None:
    run_pages(GUIDE, with_decoder)


@pytest.mark.parametrize("page", ALONE, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page, there) -> None:
    run_pages([page], there)


def test_every_page_with_something_to_run_is_run() -> None:
    for page in PAGES:
        if blocks(page) and page not in (*GUIDE, *ALONE):
            assert page == DOCS / "guide" / "extend.md", page


RECIPES = {
    title: (code, [shlex.split(line)[1:] for line in lines.splitlines()])
    for title, code, lines in re.findall(
        r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```\n\n```sh\n(.*?)```",
        (DOCS / "guide" / "extend.md").read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )
}


def test_there_is_a_recipe_for_everything_that_is_found_by_name() -> None:
    assert list(RECIPES) == [
        *("A rule", "An agent", "A quality", "A part of an observation", "A task")
    ]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_one_file_and_its_commands(title, tmp_path, tiny_model, tiny_tokenizer) -> None:
    code, steps = RECIPES[title]
    (tmp_path / "mine.py").write_text(code)
    tiny_model.backbone.save_pretrained(tmp_path / "NAME_OR_PATH")
    tiny_tokenizer.save_pretrained(tmp_path / "NAME_OR_PATH")
    (tmp_path / "DIR").mkdir()
    for split in ("train", "dev"):
        rows = [f"{text}\t{label}" for text, label in (("a good cat", 1), ("a bad dog", 0))] * 40
        text = "\n".join(["sentence\tlabel", *rows])
        (tmp_path / "DIR" / f"{split}.tsv").write_text(text + "\n")
    # The program does not look for modules in the working directory by itself.
    run = "from cee_gym.cli import main; [main(words) for words in " + repr(steps) + "]"
    done = subprocess.run(
        [sys.executable, "-P", "-c", run],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CEE_GYM_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "hindsight" in done.stdout


def test_the_family_of_the_guide_can_be_registered() -> None:
    code = re.findall(r"```python\n(.*?)```", (DOCS / "guide" / "extend.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code[-1]], cwd=ROOT, check=True)


def test_make_targets_are_known() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for named in re.findall(r"`make ([a-z-]+)`|^ {4}make ([a-z-]+)", page.read_text(), re.M):
            target = "".join(named)
            assert f"\n{target}:" in makefile, (page, target)


def test_commands_are_known() -> None:
    from cee_gym import cli

    for page in PAGES:
        for command in re.findall(r"`cee-gym ([a-z]+)", page.read_text()):
            assert hasattr(cli, command.capitalize()), (page, command)


def test_extras_are_known() -> None:
    setup = (ROOT / "setup.py").read_text()
    for page in PAGES:
        for extra in re.findall(r'pip install "(?:\.|cee-gym)\[([a-z-]+)\]"', page.read_text()):
            assert f'"{extra}": [' in setup, (page, extra)


def test_the_readme_is_short_and_its_table_is_measured() -> None:
    import tables

    readme = (ROOT / "README.md").read_text()
    assert len(readme.encode()) <= 8192
    assert tables.what_it_buys() in readme
    assert len(tables.what_it_buys().splitlines()) <= 2 + 6


def test_links_of_the_readme_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_every_page_can_be_filled() -> None:
    macros = pytest.importorskip("macros", reason="the extra docs is not installed")
    for page in DOCS.rglob("*.md"):
        assert "{{" not in macros.filled(page.read_text()), page


def test_explained_messages_are_said_somewhere() -> None:
    source = "".join(
        path.read_text()
        for folder in ("cee_gym", "agents", "envs")
        for path in (ROOT / folder).rglob("*.py")
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings that go on in the next line
    said = re.findall(r"^\| `([^`]+)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert len(said) > 15
    for message in said:
        for part in message.split("…"):
            assert part.strip() in source, message


ONE_BY_ONE = (
    *("policy_gradient", "sb3_callbacks", "own_agent", "own_reward", "optuna_search"),
    *("single_file_ppo", "single_file_dqn"),
)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_an_example_runs(name, tmp_path) -> None:
    words = [sys.executable, ROOT / "examples" / f"{name}.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_examples_with_a_model_run_one_after_another(there) -> None:
    page = there / "page.md"
    lines = re.findall(r"`(python examples/[^`]*)`", (ROOT / "examples" / "README.md").read_text())
    named = [line for line in lines if len(line.split()) > 2]
    assert len(lines) == len(list((ROOT / "examples").glob("*.py"))) == len(ONE_BY_ONE) + len(named)
    own, use, client = named
    serve = "cee-gym serve runs/own --port 8000"
    page.write_text("```sh\n" + "\n".join([own, use, serve, client]) + "\n```\n")
    (there / "examples").symlink_to(ROOT / "examples")
    run_pages([page], there)


def test_the_commands_of_the_notebooks_run(there) -> None:
    lines = [
        line
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for line in re.findall(r"^ {4}(cee-gym .*)$", cell.source, re.MULTILINE)
    ]
    assert lines
    (there / "page.md").write_text("```sh\n" + "\n".join(lines) + "\n```\n")
    run_pages([there / "page.md"], there)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["demo", "demo-generation"])
def test_a_demo_runs_as_the_makefile_has_it(target, there) -> None:
    recipe = (ROOT / "Makefile").read_text().split(f"\n{target}: .venv/installed\n")[1]
    lines = recipe.split("\n\n")[0].replace("\t$(BIN)/", "")
    (there / "page.md").write_text(f"```sh\n{lines}\n```\n")
    run_pages([there / "page.md"], there)


def test_the_deployment_on_kubernetes_uses_what_there_is() -> None:
    page = (DOCS / "guide" / "serve.md").read_text()
    text = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    deployment, service = yaml.safe_load_all(text)
    pod = deployment["spec"]["template"]
    (server,) = pod["spec"]["containers"]
    entry = re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
    command = _parsed([*json.loads(entry)[1:], *server["args"]])
    assert (command.model, command.workers, command.host) == ("/model", 2, "0.0.0.0")
    (port,) = server["ports"]
    assert port["containerPort"] == command.port
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    source = (ROOT / "cee_gym" / "serving" / "server.py").read_text()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = server[probe]["httpGet"]
        assert f'@app.get("{asked["path"]}"' in source
        assert asked["port"] == port["name"]
    assert [variable["name"] for variable in server["env"]] == [TOKEN]
    assert [mount["mountPath"] for mount in server["volumeMounts"]] == [command.model]
    assert [mount["name"] for mount in server["volumeMounts"]] == [
        volume["name"] for volume in pod["spec"]["volumes"]
    ]
    secret = server["env"][0]["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in page
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert pod["spec"]["terminationGracePeriodSeconds"] > 5 + MOST_SECONDS_TO_STOP
