"""TODO"""


def test_a_benchmark_of_ones_own_is_found_by_its_module_in_other_processes(data, own_home) -> None:
    Path("mine.py").write_text(
        "from cee_gym.envs import register_benchmark\n"
        "from cee_gym.tasks import Task, register_task\n"
        "task = Task('polite', ('rude', 'polite'), 'text', metrics=('macro_f1',))\n"
        "register_task(task)\n"
        "register_benchmark('EarlyExit-Polite', 'polite')\n"
    )
    backbone = Path(cee_gym.__file__).parent / "shipped" / CLAUSES / "backbone"
    text = ("--backbone", str(backbone), "--data", str(data))
    out = installed("build", "mine:EarlyExit-Polite", *text)
    assert "gym.make('mine:EarlyExit-Polite')" in out
    recorded = own_home / "EarlyExit-Polite"
    for file in ("recording.json", "train/header.json"):
        assert json.loads((recorded / file).read_text())["task"] == "mine:polite"
    few = ("--total-timesteps", "500", "--output")
    out = installed("train", "EarlyExit", "--trace", str(recorded), *few, "runs/by-trace")
    assert "macro_f1" in out
    assert "macro_f1" in installed("train", "mine:EarlyExit-Polite", *few, "runs/by-id")
