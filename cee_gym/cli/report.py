"""`cee-gym report`: one HTML file about a run or a study."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cee_gym.cli.arguments import check_there
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError


@command("report")
@dataclass(frozen=True)
class Report:
    """Writes one HTML file about a run or a study, which opens without a network.

    Of a run it shows accuracy against speed, where rows leave, the memorized layers, how honest the
    confidences are, what the exits achieve and what is paid, the learning curve, and examples. Of a
    study it shows the summary, every seed, and the curves of each task.

    Attributes:
        directory: The directory of a run that train wrote, or of a study.
        output: The file to write. By default it is report.html in the directory.
        split: The split to report on, for a run.
        pictures: A folder for every chart as PNG and SVG. By default there are none.
    """

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_STUDY")]
    output: Path | None = None
    split: Literal["dev", "test"] = "dev"
    pictures: Path | None = None

    def run(self) -> None:
        """Writes the page."""
        check_there("RUN_OR_STUDY", str(self.directory))
        try:
            import altair  # noqa: F401
            import vl_convert  # noqa: F401
        except ImportError as error:
            raise CeeGymError(
                f'{error.name} is not installed: pip install "cee-gym[report]"'
            ) from None
        from cee_gym.reporting.report import run_report, study_report
        from cee_gym.studies.study import STUDY

        said = "cee-gym " + shlex.join(sys.argv[1:]) if sys.argv[0].endswith("cee-gym") else ""
        if (self.directory / STUDY).exists():
            page = study_report(self.directory, said)
        else:
            page = run_report(self.directory, self.split, said)
        output = self.output or self.directory / "report.html"
        page.write(output, self.pictures)
        print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
