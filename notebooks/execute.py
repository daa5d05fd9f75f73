"""Runs the notebooks and keeps what they print and draw.

python notebooks/execute.py [NAME ...]
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent


def executed(path: Path) -> NotebookNode:
    """A notebook with its outputs, run in an empty directory; notes and progress bars left out.

    Args:
        path: of the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    # What a cell runs with "!" has to be the command of this environment.
    path_here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path_here, "COLUMNS": "80"}
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as directory:
        NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": directory}},
        ).execute(env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Executes the notebooks named, or all of them, in place."""
    for path in sorted(HERE.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            nbformat.write(executed(path), path)
            print(path.name)


if __name__ == "__main__":
    main()
