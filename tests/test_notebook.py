"""The notebook of examples/ runs from its first cell to its last, and the functions that it calls do what they say."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import IPython.display
import nbformat
import numpy as np
import pytest
from conftest import ROOT
from hub_client import NAME, environment_of
from PIL import Image
from short_run import assert_bitwise_equal

from diffusers_ict import invocation
from diffusers_ict.commands import notebook
from diffusers_ict.commands.main import PROGRAMS
from diffusers_ict.commands.main import main as program
from diffusers_ict.errors import UserError

PATH = ROOT / "examples" / "diffusers_ict.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PLACEHOLDER = "https://github.com/OWNER/diffusers-ict"  # until pyproject.toml names the repository


class Shown:
    """Stands for what a notebook shows: the newest content of each place below a cell, in order."""

    def __init__(self) -> None:
        self.places: list[object] = []
        self.interrupt_after = 0  # pictures

    def display(self, content, **options) -> "Place":
        self.places.append(content)
        return Place(self, len(self.places) - 1)

    @property
    def text(self) -> str:
        return self.places[0]["text/plain"]


class Place:
    def __init__(self, shown: Shown, number: int) -> None:
        self.shown, self.number = shown, number

    def update(self, content, **options) -> None:
        self.shown.places[self.number] = content
        if self.shown.interrupt_after and len(self.shown.places) > 1:
            self.shown.interrupt_after = 0
            raise KeyboardInterrupt


@pytest.fixture
def shown(monkeypatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr(IPython.display, "display", shown.display)
    return shown


def test_a_line_that_passes_gives_way_to_the_next(shown, tmp_path):
    cell = notebook.Cell(tmp_path)
    cell.read(io.StringIO("one\r\n\r 1%\r 2%\r 3%\ntwo\n", newline=""))
    cell.show()
    assert shown.text == "one\n 3%\ntwo"
    cell.read(f"{number}\n" for number in range(100))
    cell.show()
    assert shown.text.splitlines() == [str(number) for number in range(100 - notebook.LINES, 100)]


@pytest.mark.slow
def test_a_run_shows_its_last_samples_and_the_program_s_last_words(flags, tmp_path, shown):
    notebook.train([*flags, "--output_dir", tmp_path / "out"], every=0.1)
    *_, last = sorted((tmp_path / "out" / "samples").iterdir())
    text, picture = shown.places
    assert picture.data == last.read_bytes()
    assert "images      64 of 1x8x8" in text["text/plain"]
    assert "diffusers-ict sample" in text["text/plain"].splitlines()[-3]


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_to_the_same_weights(finished, whole, tmp_path, shown):
    own = [*finished, "--output_dir", tmp_path / "own", "--validation_steps", 1, "--resume_from_checkpoint", "latest"]
    shown.interrupt_after = 1
    with pytest.raises(UserError, match="ended with exit code 3"):
        notebook.train(own, every=0.01)
    assert "received SIGINT, and stopped after step" in shown.text
    assert not (tmp_path / "own" / "model_index.json").exists()
    notebook.train(own)
    assert_bitwise_equal(whole, tmp_path / "own")


def test_a_run_that_cannot_begin_ends_the_cell(flags, shown):
    with pytest.raises(UserError, match="unrecognized arguments: --nonsense"):
        notebook.train([*flags, "--nonsense", "1"])
    with pytest.raises(UserError, match="the run ended with exit code 2; the reason is its last line above"):
        notebook.train([*flags, "--dataset_name", "nowhere.npz"])
    assert "nowhere.npz" in shown.text.splitlines()[-1]


def test_a_run_follows_the_notebook_that_started_it(monkeypatch):
    assert invocation.followed() is None
    for parent, followed in ((os.getppid(), os.getppid()), (os.getppid() + 1, None)):
        monkeypatch.setenv(invocation.NOTEBOOK, str(parent))
        assert invocation.followed() == followed


def test_images_are_shown_as_a_run_reads_them(tmp_path):
    """One class of dark images and one of bright ones, twice as large as the run wants them."""
    for name, grey in (("dark", 51), ("light", 204)):
        (tmp_path / "two classes" / name).mkdir(parents=True)
        Image.new("L", (16, 16), grey).save(tmp_path / "two classes" / name / "0.png")
    flags = f"--train_data_dir {shlex.quote(str(tmp_path / 'two classes'))} --resolution 8"
    picture = np.asarray(notebook.show_images(f"{flags} --class_conditional", 4).convert("L"))
    rows = picture[-64:]
    assert [int(np.median(rows[:, left : left + 64])) for left in range(0, 4 * 66, 66)] == [51, 204, 51, 204]
    assert set(np.unique(notebook.show_images(flags, 2).convert("L"))) == {51, 204, 255}


def test_what_is_committed_of_the_notebook_is_its_text_and_pictures():
    nbformat.validate(NOTEBOOK)
    outputs = [output for cell in CODE for output in cell.outputs]
    assert len(outputs) == 6, "`make notebook` was not run"
    for output in outputs:
        assert output.output_type == "display_data"
        assert list(output.data) == ["image/png"]
        assert not output.metadata
    assert all(cell.execution_count is None for cell in CODE)
    text = PATH.read_text("utf-8")
    assert not re.search(r"(?<![\w./])/(home|root|work|tmp|Users|content)/", text)
    assert len(text) < 500_000


def test_commands_in_the_notebook_exist(capsys):
    """What it trains, and every flag that a command of it names, is known."""
    text = "\n".join(cell.source for cell in NOTEBOOK.cells)
    commands = re.findall(r"diffusers-ict ([a-z]+) ([^\n`]*)", text)
    assert {name for name, _ in commands} >= {"train", "sample", "edit", "publish", "check"}
    commands.append(("train", text[text.index("flags =") : text.index("## 5")]))
    for name, words in commands:
        assert name in PROGRAMS
        with pytest.raises(SystemExit):
            program([name, "--help"])
        assert set(re.findall(r"--\w+", words)) <= set(re.findall(r"--\w+", capsys.readouterr().out))


def test_link_and_installation_are_of_the_repository_that_the_project_names():
    tomllib = pytest.importorskip("tomllib", reason="a module of Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", PLACEHOLDER)
    link = "examples/diffusers_ict.ipynb"  # the file, until Colab can find it at an address
    if address != PLACEHOLDER:
        place = address.removeprefix("https://github.com/")
        link = f"https://colab.research.google.com/github/{place}/blob/main/{link}"
    assert f"]({link})" in (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", PATH.read_text("utf-8"))) == {address}


def execute(source: Path, folder: Path, environment: dict[str, str]) -> list:
    """Run a notebook in an empty folder, in processes of its own; its code cells, with all outputs."""
    folder.mkdir()
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, str(ROOT / "tests" / "notebook.py"), str(source), "all.ipynb", "--all"]
    environment = {**environment, "PATH": scripts, "JUPYTER_PLATFORM_DIRS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=1200)
    return [cell for cell in nbformat.read(folder / "all.ipynb", as_version=4).cells if cell.cell_type == "code"]


def printed(cells: list) -> str:
    """All texts below cells."""
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n".join(str(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs_as_it_is_committed(tmp_path):
    cells = execute(PATH, tmp_path / "here", {**os.environ, "HF_HOME": str(tmp_path), "HF_TOKEN": ""})
    assert "1797 of 1x8x8, 10 classes" in printed(cells)
    assert "Nothing is published" in printed(cells)
    pictures = [["image/png" in output.get("data", {}) for output in cell.outputs].count(True) for cell in cells]
    assert pictures == [len(cell.outputs) for cell in CODE], "as those that are committed"
    with Image.open(tmp_path / "here" / "samples.png") as samples:
        columns = np.asarray(samples.convert("L"), float)[-64:, : 64 * 2 : 8]
    assert columns.std() > 20, "samples that are not of one grey"


@pytest.mark.slow
def test_the_notebook_goes_on_from_the_hub_on_another_machine(tmp_path, hub):
    """With a name and a token, cells of a disconnected machine run again; the run is short."""
    text = PATH.read_text("utf-8")
    for before, after in (
        ("hub_model_id = None", f'hub_model_id = \\"{NAME}\\"'),
        ("--max_train_steps 1000", "--max_train_steps 16 --validation_steps 8"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    (tmp_path / "named.ipynb").write_text(text, "utf-8")
    environment = environment_of(hub, tmp_path / "cache")
    first = printed(execute(tmp_path / "named.ipynb", tmp_path / "first", environment))
    repository = hub.repositories[NAME]
    assert f"Published as {NAME}." in first
    assert "last-checkpoint/state.json" in repository.files
    assert "license: cc-by-4.0" in repository.files["README.md"].decode()
    second = printed(execute(tmp_path / "named.ipynb", tmp_path / "second", environment))
    assert f"resumed     from {NAME} on the Hub, after 16 of 16 steps" in second
