"""What benchmarks share: result files, which say where they were measured, and speeds."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cee_gym import ExitPolicy, Problem
from cee_gym.documents import write_document
from cee_gym.policies.speeds import measure_speeds

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, system and versions."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    versions = {}
    for name in ("cee-gym", "numpy", "gymnasium", "torch", "transformers", "stable-baselines3"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def write(name: str, results: dict[str, Any]) -> None:
    """Writes `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    write_document(RESULTS / f"{name}.json", {**results, "machine": machine()})
    print(f"wrote {RESULTS / name}.json")


def at_layer_speedup(policy: ExitPolicy, problem: Problem, wanted: float) -> ExitPolicy:
    """The policy at the threshold whose layer speed-up on a problem is nearest to a wanted one."""
    points = measure_speeds(policy, problem).points
    nearest = min(points, key=lambda point: abs(1 / (1 - point.saved_layers) - wanted))
    return policy.at(threshold=min(max(nearest.threshold, 0.0), 1.0))
