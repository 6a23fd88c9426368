"""Small real things the tests share: a tiny UNet, a data set made on the spot, a clean accelerate state."""

import os

# Read when huggingface_hub is imported: no test reaches a real server.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TQDM_DISABLE"] = "1"
# One thread unless asked otherwise, also for subprocesses: sums in another order are other sums.
os.environ["OMP_NUM_THREADS"] = os.environ.get("TEST_THREADS", "1")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # tests run beside each other, and threads that spin stop the others

import importlib
import importlib.util
import json
import shutil
import signal
import sys
import sysconfig
import tempfile
import types
import venv
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

DATASETS_CACHE = tempfile.TemporaryDirectory(prefix="datasets-")  # no test fills the user's
os.environ["HF_DATASETS_CACHE"] = DATASETS_CACHE.name
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "train_scripts"), str(ROOT / "examples"), str(ROOT / "benchmarks")]
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
ONE_LEVEL = {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}


def make_unet(seed: int = 0, **changes) -> UNet2DModel:
    """A tiny UNet2DModel whose weights follow from the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return UNet2DModel(**{**TINY, **changes})


def write_npz(path: Path, count: int = 64, channels: int = 1, side: int = 8, classes: int = 4) -> Path:
    """Coloured discs on noise, with labels: real enough to train on."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    images = rng.integers(0, 40, (count, side, side, channels))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1)
    for image, label in zip(images, labels):
        disc = np.hypot(*(grid - side / 2 + 0.5).transpose(2, 0, 1)) < side / 8 * (label + 1)
        image[disc] = 200
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


def pictures(count: int = 64, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Coloured rectangles of random places [n, H, W, 3], and their negatives in grey [n, H, W]."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, side, side, 3), np.uint8)
    for image in images:
        image[:] = rng.integers(0, 256, 3)
        top, left = rng.integers(0, side // 2, 2)
        image[top : top + side // 2, left : left + side // 2] = rng.integers(0, 256, 3)
    return images, (255 - images.mean(-1)).astype(np.uint8)


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of each file in a folder, by its path there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test comes first, so that no worker is left alone with it."""
    items.sort(key=lambda item: "short_form" not in item.name)


@pytest.fixture(autouse=True)
def own_signals():
    """Signals that end a program do so, also where the tests were started with some ignored, as `nohup` or `&` do."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "data.npz")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "unet.json"
    path.write_text(json.dumps({**TINY, **ONE_LEVEL, "num_class_embeds": None, "_class_name": "UNet2DModel"}))
    return path


@pytest.fixture
def flags(data: Path, config: Path) -> list[str]:
    """Flags of a run of seconds: 24 steps in which N changes several times."""
    return [
        *("--dataset_name", str(data), "--model_config_name_or_path", str(config)),
        *("--train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_train_steps", "24"),
        *("--objective", "s0=2", "s1=16", "--learning_rate", "1e-3", "--ema_decays", "0.9", "0.5", "--random_flip"),
        *("--checkpointing_steps", "5", "--checkpoints_total_limit", "3", "--logging_steps", "1"),
        *("--num_validation_images", "4", "--validation_steps", "1000"),
    ]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    images, grey = pictures()
    np.savez(tmp_path / "pairs.npz", image=images, grey=grey, label=np.arange(len(images)) % 3)
    return tmp_path / "pairs.npz"


@pytest.fixture
def pair_config(tmp_path: Path) -> Path:
    """A network that states neither channels nor classes."""
    config = {name: value for name, value in {**TINY, **ONE_LEVEL}.items() if "channels" not in name[:12]}
    path = tmp_path / "unet.json"
    path.write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    return path


@pytest.fixture
def pair_flags(pairs: Path, pair_config: Path) -> list[str]:
    return [
        *("--dataset_name", str(pairs), "--image_column", "image", "--conditioning_image_column", "grey"),
        *("--model_config_name_or_path", str(pair_config), "--train_batch_size", "4", "--random_flip"),
        *("--gradient_accumulation_steps", "2", "--max_train_steps", "12", "--learning_rate", "1e-3"),
        *("--ema_decays", "0.9", "--checkpointing_steps", "5", "--checkpoints_total_limit", "3"),
        *("--num_validation_images", "4", "--validation_steps", "1000"),
    ]


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The folder of an iCT run of 12 steps that nothing disturbed; the first test that uses `finished` makes it."""
    return tmp_path_factory.mktemp("whole") / "out"


@pytest.fixture
def finished(flags: list[str], whole: Path, tmp_path: Path) -> list[str]:
    """Flags of that run, of which tmp_path/out is a copy: it has checkpoints of steps 5, 10 and 12."""
    from short_run import ICT, run

    own = [*ICT, *flags, "--max_train_steps", "12"]
    if not whole.exists():
        assert run(*own, "--output_dir", whole) == 0
    shutil.copytree(whole, tmp_path / "out")
    return [*own, "--output_dir", str(tmp_path / "out")]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def environment_without_us(base: Path) -> str:
    """The interpreter of a new environment that has everything this one has, but for diffusers-ict."""
    venv.create(base / "env", symlinks=True)
    packages = base / "site-packages"  # by this name dill knows what it need not take apart
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "diffusers_ict" not in entry.name:  # the package, its metadata, or the link of an editable installation
            (packages / entry.name).symlink_to(entry)
    python = base / "env" / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(base / "env"), "platbase": str(base / "env")})
    (Path(own) / "others.pth").write_text(f"{packages}\n")
    return str(python)


@pytest.fixture(scope="session")
def python_without_us(tmp_path_factory) -> str:
    """An interpreter that many tests share: none may install anything for it."""
    return environment_without_us(tmp_path_factory.mktemp("environment"))


@pytest.fixture
def fidelity():
    """Modules of torch-fidelity, without the parts of it that need torchvision. torchmetrics imports them, too."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(importlib.util.find_spec("torch_fidelity").submodule_search_locations)
    utils = types.ModuleType("torch_fidelity.utils")
    for unused in ("create_feature_extractor", "resolve_feature_extractor", "resolve_feature_layer_for_metric",
                   "extract_featuresdict_from_input_id_cached"):  # fmt: skip
        setattr(utils, unused, None)
    sys.modules |= {"torch_fidelity": package, "torch_fidelity.utils": utils}
    yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


@pytest.fixture
def hub():
    """A Hub on this machine that has nothing yet."""
    from hub_stand_in import Hub, serve

    with serve(Hub()) as hub:
        yield hub


@pytest.fixture
def published(hub, tmp_path, monkeypatch):
    """published(folder, *flags): the exit code of publishing at that Hub, in this process."""
    from hub_client import NAME, connect

    from diffusers_ict.commands import publish

    connect(monkeypatch, hub, tmp_path / "h")
    return lambda folder, *flags: publish.main([str(folder), "--hub_model_id", NAME, *flags])


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The folder of a finished class-conditional run, and its data beside it; tests that change it copy it."""
    from hub_client import digits_flags

    from diffusers_ict.commands import train

    base = tmp_path_factory.mktemp("digits")
    assert train.main(digits_flags(base)) == 0
    return base / "my-digits"


@pytest.fixture
def run(digits, tmp_path) -> Path:
    """A copy of `digits`."""
    return shutil.copytree(digits, tmp_path / "my-digits")


@pytest.fixture(scope="session")
def browser():
    from page_view import open_browser

    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def grey(browser, tmp_path_factory):
    """A pipeline with three classes, and its page."""
    from page_view import build

    return build(tmp_path_factory.mktemp("grey"), num_class_embeds=3)


@pytest.fixture(scope="session")
def coloured(browser, tmp_path_factory):
    """A pipeline without classes whose images have colours, and its page."""
    from page_view import build

    return build(tmp_path_factory.mktemp("coloured"), in_channels=3, out_channels=3)


@pytest.fixture(scope="session")
def transparent(browser, tmp_path_factory):
    """A pipeline of four classes whose images have alpha, and its page."""
    from page_view import build

    return build(tmp_path_factory.mktemp("transparent"), in_channels=4, out_channels=4, num_class_embeds=4)


@pytest.fixture
def look(browser, tmp_path, request):
    """look(folder, ...) opens a page. In the end, it is photographed, and no page may have complained."""
    from page_view import Looks

    with ExitStack() as stack:
        looks = Looks(browser, stack)
        yield looks
        looks.photograph(Path(os.environ.get("WEB_SCREENSHOTS", tmp_path)), request.node.name)
    assert [complaint for view in looks.views for complaint in view.complaints] == []


@pytest.fixture(autouse=True)
def same_chance_every_time():
    """What a test draws without a generator of its own is the same in every run and in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """accelerate keeps one state for the whole process; every run here wants its own."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
