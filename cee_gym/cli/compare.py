"""`cee-gym compare`: runs side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cee_gym.cli.arguments import check_there
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError


@command("compare")
@dataclass(frozen=True)
class Compare:
    """Compares runs on the same rows: at equal saved layers, and each at its own speed.

    Differences are paired by row and have 95 % intervals from a bootstrap of the rows. Speeds are
    chosen on calibration. The best fixed layers are always among what is compared.

    Attributes:
        runs: The directories of runs that train wrote, the first of which the others are compared
            with. A directory that train --seeds made stands for all of its seeds.
        split: The split to report on.
        saved_layers: The shares of saved layers at which accuracies are compared.
        output: A directory for comparison.json, comparison.png and comparison.svg. By default only
            the table is printed.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    split: Literal["dev", "test"] = "dev"
    saved_layers: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    output: Path | None = None

    def run(self) -> None:
        """Compares, and prints the table and what it says."""
        if not self.runs:
            raise CeeGymError("there is nothing to compare: give the directories of runs")
        for run in self.runs:
            check_there("RUN", str(run))
        from cee_gym.documents import write_document
        from cee_gym.evaluation.compare import compare
        from cee_gym.evaluation.comparison_plot import plot_comparison
        from cee_gym.evaluation.resampling import in_words

        found = compare(self.runs, split=self.split, saved_layers=self.saved_layers)
        print(found)
        first = found.runs[0].name
        means = {f"{name} against {first}": by["mean"] for name, by in found.differences.items()}
        print()
        print("\n".join(in_words(means)))
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            write_document(self.output / "comparison.json", found.to_json())
            for suffix in (".png", ".svg"):
                plot_comparison(found, self.runs, self.output / f"comparison{suffix}")
            print(f"\n{self.output}/comparison.json, .png and .svg")
