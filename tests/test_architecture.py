"""What holds for the package as a whole: light imports, a documented surface, no pickle."""

import ast
import inspect
import subprocess
import sys

import pytest
from conftest import ROOT
from importlinter.cli import lint_imports

import diffusers_ict

RUNNERS = ("run", "call", "check_call", "check_output")
PACKAGE = ROOT / "src" / "diffusers_ict"


def imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after some code, less those that it calls `before`."""
    code += "\nimport sys; print(*set(sys.modules) - set(globals().get('before', ())))"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.split())


def test_importing_the_package_and_its_flags_is_light():
    loaded = imported_by(
        "import diffusers_ict\n"
        "from diffusers_ict.commands import main, train, evaluate, publish, convert, check_repository\n"
        "from diffusers_ict.commands import export_onnx, demo\n"
        "from diffusers_ict.training.recipe import parse\n"
        "parse(['--config', 'ict_cifar10'], 'train_ict.py', '')"
    )
    assert not loaded & {"torch", "diffusers", "accelerate", "datasets", "numpy", "transformers", "huggingface_hub"}


@pytest.mark.slow
def test_the_public_names_need_torch_and_diffusers_only():
    code = "from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel\n"
    code += "import sys; before = set(sys.modules)\nfrom diffusers_ict import *"
    heavy = {"accelerate", "datasets", "matplotlib", "yaml", "sklearn", "transformers", "pandas"}
    assert not imported_by(code) & heavy


def test_the_surface_is_explicit_and_documented():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    (listed,) = [ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign)]
    assert sorted(listed) == sorted(diffusers_ict.__all__)
    for name in listed:
        assert inspect.getdoc(getattr(diffusers_ict, name)), f"{name} has no docstring"


def test_the_floors_hold():
    """The contracts of pyproject.toml: imports point down, formulas need torch only, no circles."""
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_every_wait_of_tests_and_benchmarks_has_an_end():
    """A test that waits for a process or a thread for ever hides what went wrong."""
    for path in [*(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            waits = called.endswith((".communicate", *(f"subprocess.{name}" for name in RUNNERS)))
            waits |= called.endswith((".join", "process.wait", "ended.wait", "launcher.wait")) and not node.args
            assert not waits or "timeout" in {word.arg for word in node.keywords}, f"{path.name}:{node.lineno}"


def test_no_pickle_is_loaded():
    """`torch.load` stands in two places, for files of others, and may build tensors and plain containers only."""
    loads = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "train_scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert not called.startswith("pickle."), f"{path.name}:{node.lineno}"
            if called == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{path.name}:{node.lineno}"
                loads.append(path.name)
    assert sorted(loads) == ["checkpoint.py", "extractors.py"]
