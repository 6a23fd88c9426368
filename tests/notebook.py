"""Run a notebook in the current folder, and write it as it is committed: without output other than pictures.

    python tests/notebook.py ../examples/diffusers_ict.ipynb pictures.ipynb
    python tests/notebook.py ../examples/diffusers_ict.ipynb everything.ipynb --all

`make notebook` renews the committed one.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PICTURE = "image/png"
CELL_SECONDS = 900  # that a cell may take


def pictures_alone(notebook: nbformat.NotebookNode) -> None:
    """Remove, in place, what cells printed, their numbers and times, and other forms of their pictures."""
    notebook.metadata.pop("language_info", None)  # the version of Python
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [
                nbformat.v4.new_output("display_data", {PICTURE: output.data[PICTURE]})
                for output in cell.outputs
                if PICTURE in output.get("data", {})
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--all", action="store_true", help="keep all output")
    options = parser.parse_args()
    notebook = nbformat.read(options.notebook, as_version=4)
    NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3").execute()
    if not options.all:
        pictures_alone(notebook)
    nbformat.write(notebook, options.output)


if __name__ == "__main__":
    main()
