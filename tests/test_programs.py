"""What all programs share: names, help, flags, and a console that ends none of them."""

import os
import re
import runpy
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from diffusers_ict.commands.main import PROGRAMS
from diffusers_ict.commands.main import main as program
from diffusers_ict.commands.program import run_program
from diffusers_ict.invocation import command_words, message_name, typed
from diffusers_ict.progress import told
from diffusers_ict.settings import ArgumentParser, nearest
from diffusers_ict.training.recipe import parse

WAITING = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
LOAD = """
import importlib, os, sys
from diffusers_ict.commands.main import PROGRAMS
for name in PROGRAMS.values():
    importlib.import_module(f"diffusers_ict.commands.{name}")
assert "torch" not in sys.modules
print({name: value for name, value in os.environ.items() if name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")})
import torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_that_wait_spin_for_a_while_only_unless_the_user_chose(chosen, expected):
    """libgomp itself tells what it has read."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **chosen}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.strip() == str(expected)
    assert f"GOMP_SPINCOUNT = '{expected.get('GOMP_SPINCOUNT', '0')}'" in done.stderr


def test_a_tilde_is_the_home_in_every_flag_and_recipe_and_a_hub_id_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("train_data_dir: ~/images\npretrained_model_name_or_path: someone/ddpm~1\n")
    recipe = parse(["--config=~/recipe.yaml", "--output_dir=~/out", "--hub_model_id", "a/b"], "train_ict.py", None)
    assert (recipe.output_dir, recipe.train_data_dir) == (str(tmp_path / "out"), str(tmp_path / "images"))
    assert (recipe.pretrained_model_name_or_path, recipe.hub_model_id) == ("someone/ddpm~1", "a/b")
    parser = ArgumentParser("convert.py", None)
    parser.add_argument("source")
    parser.add_argument("output_dir", type=Path)
    options = parser.parse_args(["~/model.pt", "~"])
    assert (options.source, options.output_dir) == (str(tmp_path / "model.pt"), tmp_path)


TALKS = """
import sys, warnings
from diffusers_ict.commands.program import run_program
from diffusers_ict.progress import progress_bar

def body():
    for number in range(20_000):  # more than a pipe holds
        print("the class 猫 has", number, "images")
    warnings.warn("`resolution` 猫")
    with progress_bar(3, "step") as bar:
        bar.update(3)
    open("done", "w").close()
    return 3

sys.exit(run_program("talks", body))
"""
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("console", "environment"),
    [
        ("| head -1; exit ${PIPESTATUS[0]}", {}),
        ("2>&1 | true; exit ${PIPESTATUS[0]}", {}),
        ("2> >(true)", {}),
        (">/dev/full 2>/dev/full", {}),
        (">&-", {}),
        (">&- 2>&- <&-", {}),
        (">told 2>&1", {"PYTHONIOENCODING": "cp1252"}),
        (">told 2>&1", NO_UTF8),
    ],
)
def test_the_console_never_ends_a_program_nor_changes_its_code(tmp_path, console, environment):
    (tmp_path / "talks.py").write_text(TALKS)
    command = f"'{sys.executable}' talks.py {console}"
    environment = {**{key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}, **environment}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, check=False, capture_output=True, timeout=600
    )
    assert done.returncode == 3, done.stderr.decode()[-500:]
    assert (tmp_path / "done").exists()
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if (tmp_path / "told").exists():
        assert rb"the class \u732b has 19999 images" in (tmp_path / "told").read_bytes()


INTERRUPT = "lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60))"
AS_PYTHON_ENDS = {
    "import atexit": f"atexit.register({INTERRUPT})",
    "import threading": "threading.Thread(target=lambda: (threading.main_thread().join(), time.sleep(0.1), "
    "os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1))).start()",
    "import weakref": f"thing = type('Thing', (), {{}})(); weakref.finalize(thing, {INTERRUPT})",
}


@pytest.mark.parametrize("module", AS_PYTHON_ENDS)
def test_ctrl_c_as_python_ends_shows_no_traceback(module):
    code = f"import os, signal, sys, time; {module}; from diffusers_ict.commands.program import run_program\n"
    code += f"signal.signal(signal.SIGINT, signal.default_int_handler)\n{AS_PYTHON_ENDS[module]}\n"
    code += "sys.exit(run_program('works', lambda: print('done')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert done.returncode == 0


def test_ctrl_c_while_a_command_is_loaded_is_one_sentence(monkeypatch, capsys):
    def interrupted(_name):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffusers_ict.commands.main._module", interrupted)
    assert program(["train"]) == 130
    assert capsys.readouterr().err == "diffusers-ict: interrupted.\n"


def test_what_is_opened_next_does_not_get_the_number_of_a_closed_stream(tmp_path):
    """Libraries print to 1 and 2 whatever those are; a checkpoint must not be one of them."""
    code = "from diffusers_ict.commands.console import guard_console; guard_console(); "
    code += "import os; number = open('file', 'w').fileno(); os.write(1, b'noise'); os._exit(number)"
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -c \"{code}\" <&- >&- 2>&-"], cwd=tmp_path, check=False, timeout=600
    )
    assert done.returncode > 2
    assert (tmp_path / "file").read_bytes() == b""


def test_help_is_no_error_for_a_reader_that_has_seen_enough():
    for words in ("", "train --help", "--version"):
        command = f"'{sys.executable}' -m diffusers_ict {words} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stderr) == (0, ""), words


def test_the_overview_has_a_line_for_each_command_and_help_the_name_that_was_typed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/diffusers-ict"])
    assert program([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in PROGRAMS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3, line
        with pytest.raises(SystemExit):
            program([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: diffusers-ict {name} ")
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    ("started", "words", "begins", "again"),
    [
        ("/usr/bin/diffusers-ict", "diffusers-ict train", "diffusers-ict train", "diffusers-ict train"),
        ("train_scripts/train_ict.py", *["python train_scripts/train_ict.py", "train_ict.py"], None),
        ("/home/me/d/train_scripts/train_ict.py", "python /home/me/d/train_scripts/train_ict.py", "train_ict.py",
         "python train_scripts/train_ict.py"),
        ("/lib/diffusers_ict/__main__.py", *["python -m diffusers_ict train"] * 3),
        ("/lib/pytest/__main__.py", *["diffusers-ict train"] * 3),
    ],
)  # fmt: skip
def test_programs_are_called_as_they_were_started(monkeypatch, started, words, begins, again):
    monkeypatch.setattr(sys, "argv", [started, "--flag"])
    assert typed("train") == words
    assert message_name(words) == begins
    assert " ".join(command_words("train")) == (again or words), "no folder of this machine is in it"


@pytest.mark.parametrize("launch", [["torch.distributed.run", "--nproc_per_node", "1", "--standalone"]])
def test_a_command_is_repeated_with_the_words_of_its_launcher(tmp_path, launch):
    script = tmp_path / "train_ict.py"
    script.write_text("from diffusers_ict.invocation import command_words\nprint(*command_words('train'))\n")
    command = [sys.executable, "-m", *launch, str(script), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    name = "python -m torch.distributed.run" if "run" in done.stdout.split()[2] else "torchrun"
    assert done.stdout == f"{name} --nproc_per_node 1 --standalone train_scripts/train_ict.py\n"


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("trian", "there is no command trian; did you mean train."),
        ("export_onnx m", "did you mean export-onnx."),
        ("sampel", "did you mean sample."),
        ("eval m", "did you mean evaluate."),
        ("upload m", "did you mean publish."),
        ("train -lr 1e-3", "try --learning_rate."),
        ("zzz", "diffusers-ict --help lists the commands."),
        ("train --batch_size 4", "try --train_batch_size."),
        ("train --batch_size=4 --lr 1e-3 --epochs 3", "try --train_batch_size, --learning_rate, --num_train_epochs."),
        ("train --class-conditional", "try --class_conditional."),
        ("train --no-class-conditional", "try --no-class_conditional."),
        ("train --learning-rate 1", "try --learning_rate."),
        ("train --resolutoin 8", "try --resolution."),
        ("train --hub_token hf_abcdefgh", "unrecognized arguments: --hub_token hf_...; see --help"),
        ("train --config small-budget", "got small-budget; try small_budget."),
        ("train --config tune-ddpm.yaml", "got tune-ddpm.yaml; try tune_ddpm."),
        ("evaluate m --batch_sise 4", "try --batch_size."),
        ("sample m --steps 4", "try --num_inference_steps."),
        ("publish m --hub_model_id a/b --repo_id a/b", "try --hub_model_id."),
    ],
)
def test_what_is_misspelt_or_called_otherwise_elsewhere_gets_the_nearest_right_name(words, end, capsys):
    assert program(words.split()) == 2
    err = capsys.readouterr().err
    assert err.rstrip().endswith(end) or f"{end}," in err, err
    assert err.count("\n") == 1


def test_the_nearest_name_is_none_where_nothing_is_near():
    assert nearest("--frobnicate", ["resolution", "seed"]) is None
    assert nearest("--lr", ["seed"]) is None, "another program has the flag"


def test_help_of_training_begins_with_the_flags_that_matter_and_names_each_once(capsys):
    with pytest.raises(SystemExit):
        program(["train", "--help"])
    text = capsys.readouterr().out
    first = text.partition("start here:")[2].partition("the images:")[0]
    assert len(re.findall(r"^  --", first, re.M)) == 10
    flags = re.findall(r"^  (--\w+)", text, re.M)
    assert sorted(flags) == sorted(set(flags))
    assert {"--learning_rate", "--label_column", "--push_to_hub"} <= set(flags)


REFUSED = """
import sys
from diffusers_ict.commands.main import main
code = main(sys.argv[1:])
heavy = {"torch", "datasets", "diffusers", "accelerate", "huggingface_hub"} & set(sys.modules)
sys.exit(f"{heavy} were imported" if heavy else code)
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--resolution", "4"], "resolutions from 8 to 256 pixels, got 4"),
        (["train", "--resolution", "36"], "must be a multiple of 8, got 36; choose --resolution 32"),
        (["train", "--license", "CC0 1.0"], "an identifier of the Hub such as cc0-1.0 or mit, got 'CC0 1.0'; try"),
        (["publish", "m", "--hub_model_id", "a/b", "--license", "MIT"], "got 'MIT'; try mit."),
        (["convert", "m", "n", "--license", "Apache 2.0"], "got 'Apache 2.0'; try apache-2.0."),
        (["sample", "m", "--num_samples", "0"], "--num_samples must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_flags_alone_tell_is_refused_before_anything_is_imported_or_read(words, message):
    words = [*words, "--train_data_dir", "nowhere"] if words[0] == "train" else words
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *words], capture_output=True, text=True, check=False, timeout=600
    )
    assert message in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_size_that_the_default_network_lacks_is_refused_for_that_network_alone(capsys):
    for own in (["--model_config_name_or_path", "x.json"], ["--pretrained_model_name_or_path", "someone/ddpm"]):
        assert program(["train", "--resolution", "36", "--train_data_dir", "nowhere", *own]) == 2
        assert "must be a multiple of" not in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named(capsys):
    def body():
        import no_such_package  # noqa: F401

    assert run_program("diffusers-ict x", body) == 2
    message = "diffusers-ict x: this command needs a package that is not installed: pip install no_such_package.\n"
    assert capsys.readouterr().err == message


def test_what_takes_long_says_what_it_is_and_what_does_not_says_nothing(capsys):
    said = ""
    with told("loading", seconds=0):
        while not said.endswith("\n"):
            said += capsys.readouterr().err
    assert said == "loading ...\n"
    with told("loading", seconds=0.01):
        pass
    time.sleep(0.03)
    assert capsys.readouterr().err == ""


PLACES = ("train_scripts", "examples", "benchmarks")
FILES = sorted(path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in (".py", ".sh"))
RUN = [path for path in FILES if path.suffix == ".sh" or "__main__" in path.read_text()]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_every_file_that_can_be_run_answers_help_and_does_no_work(path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    if path.suffix == ".sh":
        done = subprocess.run(["sh", str(path), "--help"], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.count("\n") >= 2
    else:
        monkeypatch.setattr(sys, "argv", [str(path), "--help"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        assert end.value.code in (0, None)
        assert capfd.readouterr().out.startswith("usage: ")
    assert not list(tmp_path.iterdir())


def test_lines_in_a_pipe_are_there_when_they_are_printed():
    code = "from diffusers_ict.commands.console import guard_console; guard_console(); "
    code += "import sys; print('first'); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert select.select([process.stdout], [], [], 60)[0]
            assert os.read(process.stdout.fileno(), 100) == b"first\n"
        finally:
            process.stdin.close()
            process.wait(60)


def test_the_block_of_the_training_script_says_what_pyproject_says():
    """PEP 723: what `uv run` and `hf jobs uv run` make an environment of."""
    tomllib = pytest.importorskip("tomllib", reason="a module of Python 3.11")
    script = (ROOT / "train_scripts" / "train_ict.py").read_text("utf-8")
    (block,) = re.findall(r"(?m)^# /// script\n((?:#(?: .*)?\n)+?)# ///$", script)
    block = tomllib.loads("".join(line[2:] or "\n" for line in block.splitlines(keepends=True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert block["requires-python"] == project["requires-python"]
    assert block["dependencies"] == [f"{project['name']}[train]"]
    source = block["tool"]["uv"]["sources"][project["name"]]["path"]
    assert (ROOT / "train_scripts" / source / "pyproject.toml").samefile(ROOT / "pyproject.toml")
