"""The floors: imports point down, `import diffusers_ict` is light, every public name exists and is documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import diffusers_ict

PACKAGE = ROOT / "src" / "diffusers_ict"
FLOORS = [
    {"errors", "version", "noise_schedule", "preconditioning", "distances", "time_embedding", "augmentation"},
    {"lpips", "objective", "ict", "ct", "act", "scheduling_ict", "discriminator"},
    {"pipeline_consistency"},
    {"training", "evaluation", "conversion"},
]
# Floor 0 is formulas: nothing but torch, math and the standard library.
ALLOWED_ON_FLOOR_0 = {"torch", "math", "collections", "dataclasses"}


def floor(module: str) -> int:
    return next(level for level, names in enumerate(FLOORS) if module.split(".")[0] in names)


def modules() -> dict[str, Path]:
    found = {p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): p for p in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items() if name != "__init__"}


def imports(path: Path, name: str) -> tuple[set[str], set[str]]:
    """(modules of ours, top-level names of others) that a file imports anywhere in it."""
    ours, others = set(), set()
    package = name.split(".")[:-1] if path.name != "__init__.py" else name.split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *([node.module] if node.module else [])])
            ours |= {target} if node.module else {f"{target}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def test_every_module_stands_on_a_floor():
    for name in modules():
        floor(name)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name):
    ours, others = imports(modules()[name], name)
    for target in ours:
        assert floor(target) <= floor(name), f"{name} imports {target} from a floor above"
    assert "diffusers_ict" not in others, "import our own modules relatively"
    assert not others & {"train_ict", "torchvision"}
    if floor(name) == 0:
        assert others <= ALLOWED_ON_FLOOR_0, others


def test_imports_have_no_cycle():
    graph = {name: {t for t in imports(path, name)[0] if t in modules()} for name, path in modules().items()}
    while graph:
        leaves = [name for name, targets in graph.items() if not targets & graph.keys() - {name}]
        assert leaves, f"a cycle among {sorted(graph)}"
        for name in leaves:
            del graph[name]


def test_importing_the_package_is_light():
    heavy = "accelerate datasets matplotlib yaml sklearn transformers pandas".split()
    code = (
        "import sys; from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel; "
        "before = set(sys.modules); import diffusers_ict; new = set(sys.modules) - before; "
        f"found = [m for m in {heavy} if m in new]; sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_surface_is_explicit_and_documented():
    for name in diffusers_ict.__all__:
        thing = getattr(diffusers_ict, name)
        assert inspect.getdoc(thing), f"{name} has no docstring"


def test_files_and_functions_stay_small():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "train_scripts").glob("*.py"), *(ROOT / "examples").glob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 320, f"{path.name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name != "train":  # the script's one flat function
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 70, f"{path.name}: {node.name} has {lines} lines"


def test_no_pickle_is_loaded():
    """`torch.load` stands in two places, for files of others, and may build tensors and plain containers only."""
    found = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "train_scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                module = getattr(node.func.value, "id", "")
                assert module != "pickle", f"{path.name}:{node.lineno}"
                if module == "torch":
                    restricted = [k.value.value for k in node.keywords if k.arg == "weights_only"]
                    assert restricted == [True], f"{path.name}:{node.lineno}"
                    found.append(path.name)
    assert sorted(found) == ["extractors.py", "pipelines.py"]
