"""Advice that a sentence gives is followed, on the same input, and helps: it neither leads in a circle nor nowhere."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from conftest import ONE_LEVEL, TINY, make_unet, write_npz
from datasets import Dataset
from diffusers import DDPMPipeline, DDPMScheduler
from evaluated import arguments
from PIL import Image
from safetensors.torch import save_file
from test_lpips import weights as lpips_weights

import diffusers_ict
from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import evaluate, train
from diffusers_ict.errors import UserError
from diffusers_ict.training.default_size import default_levels

Words = list[object]
TWO = {"0.png": ("L", (8, 8)), "1.png": ("L", (8, 8))}
SIZES = {"a/0.png": ("L", (8, 8)), "a/1.png": ("L", (12, 12)), "b/2.png": ("L", (8, 8))}
FOUR = {"0.png": ("RGBA", (8, 8))}
MIXED = {"a/0.png": ("RGB", (8, 8)), "b/1.png": ("L", (8, 8))}
OBLONG = {"a/0.png": ("L", (8, 8)), "b/1.png": ("L", (12, 8))}
ALL = {"a/0.png": ("RGB", (9, 9)), "b/1.png": ("L", (20, 12))}


def folder(base: Path, pictures: dict) -> Words:
    """Flags of a folder of such pictures: mode and size by name."""
    for name, (mode, size) in pictures.items():
        path = base / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(path)
    return ["--train_data_dir", base / "images"]


def write(file: Path, content: str) -> Words:
    """Write a file; it adds no words."""
    file.write_text(content)
    return []


def listed(base: Path) -> Words:
    words = folder(base, dict.fromkeys(("0.png", "1.png"), ("L", (8, 8))))
    (base / "images" / "metadata.csv").write_text("file_name,kind\n0.png,cat\n1.png,dog\n")
    return [*words, "--class_conditional"]


def arrays(base: Path, **more: np.ndarray) -> Words:
    np.savez(base / "many.npz", images=np.zeros((4, 8, 8), np.uint8), **more)
    return ["--dataset_name", base / "many.npz"]


def parquet(base: Path) -> Words:
    (base / "parts").mkdir(exist_ok=True)
    pictures = [Image.new("L", (8, 8)), Image.new("L", (8, 8), 9)]
    Dataset.from_dict({"image": pictures, "label": [0, 1]}).to_parquet(base / "parts" / "train.parquet")
    return ["--dataset_name", base / "parts"]


STREAM = ["--streaming", "--shuffle_buffer", 4]


def ddpm(place: Path) -> Path:
    DDPMPipeline(make_unet().eval(), DDPMScheduler()).save_pretrained(place)
    return place


def lpips(base: Path) -> Path:
    save_file(lpips_weights(), base / "lpips.safetensors")
    return base / "lpips.safetensors"


def numbers() -> np.ndarray:
    return np.arange(4) % 2


# (words of a run, the end of the sentence, words that follow its advice: more ones, or others instead of those given)
TRAINING: dict[str, tuple[Callable[[Path], Words], str, Words | Callable[[Words], Words]]] = {
    "sizes": (lambda base: folder(base, SIZES), "give --resolution and --image_mode", ["--resolution", 8]),
    "modes": (lambda base: folder(base, MIXED), "give --resolution and --image_mode", ["--image_mode", "L"]),
    "shapes": (lambda base: folder(base, OBLONG), "--center_crop", ["--center_crop"]),
    "all of them": (
        lambda base: folder(base, ALL),
        "try --image_mode RGB --resolution 8 --center_crop.",
        ["--image_mode", "RGB", "--resolution", 8, "--center_crop"],
    ),
    "two images": (
        lambda base: arrays(base, others=np.zeros((4, 8, 8), np.uint8)),
        "could be meant by --image_column: images, others; name one",
        ["--image_column", "others"],
    ),
    "two labels": (
        lambda base: [*arrays(base, a=numbers(), b=numbers()), "--class_conditional"],
        "could be meant by --label_column: a, b; name one",
        ["--label_column", "b"],
    ),
    "no such labels": (
        lambda base: [*arrays(base, a=numbers()), "--class_conditional", "--label_column", "c"],
        "--label_column must name one of images (uint8 [4, 8, 8]), a (int64 [4])",
        lambda words: [*words[:-1], "a"],
    ),
    "no labels": (
        lambda base: [*folder(base, TWO), "--class_conditional"],
        "a folder has one sub-folder for each class, or a metadata.csv with the columns file_name and label",
        lambda words: [*words, *write(words[1] / "metadata.csv", "file_name,label\n0.png,cat\n1.png,dog\n")],
    ),
    "a list with other columns": (listed, "a metadata.csv with the columns", ["--label_column", "kind"]),
    "a column of no list": (
        lambda base: [*folder(base, SIZES), "--label_column", "kind", "--resolution", 8],
        "means nothing for a folder of images without metadata.csv or metadata.jsonl, got kind: leave it out",
        lambda words: [word for word in words if word not in ("--label_column", "kind")],
    ),
    "two data sets": (
        lambda base: [*folder(base, {"0.png": ("L", (8, 8))}), *arrays(base)],
        "--dataset_name or as --train_data_dir, one of the two",
        lambda words: words[2:],
    ),
    "a file as a folder": (
        lambda base: ["--train_data_dir", arrays(base)[1]],
        "give a data file as --dataset_name",
        lambda words: ["--dataset_name", words[1]],
    ),
    "an array as data": (
        lambda base: ["--dataset_name", base / "a.npy", *write(base / "a.npy", "an array")],
        "or numpy.savez for pictures",
        lambda words: arrays(Path(words[1]).parent),
    ),
    "a large batch": (
        lambda base: [*arrays(base), "--train_batch_size", 8],
        "lower --train_batch_size",
        lambda words: [*words[:-1], 4],
    ),
    "computed again in a graph": (
        lambda base: [*arrays(base), "--gradient_checkpointing", "--torch_compile"],
        "leave it or --torch_compile out",
        lambda words: words[:-1],
    ),
    "polynomial": (
        lambda base: [*arrays(base), "--lr_scheduler", "polynomial", "--learning_rate", 1e-7],
        "take linear, which falls to 0",
        lambda words: [*words, "--lr_scheduler", "linear"],
    ),
    "fp16 without a GPU": (
        lambda base: [*arrays(base), "--mixed_precision", "fp16"],
        "use bf16 or no",
        lambda words: [*words[:-1], "bf16"],
    ),
    "LPIPS without weights": (
        lambda base: [*arrays(base), "--loss", "ct", "--metric", "lpips"],
        "--metric lpips needs --lpips_weights FILE, or the package",
        lambda words: [*words, "--lpips_weights", lpips(words[1].parent)],
    ),
    "LPIPS of four channels": (
        lambda base: [*folder(base, FOUR), "--image_mode", "RGBA", "--loss", "ct", "--lpips_weights", lpips(base),
                      "--metric", "lpips"],
        "or use --metric l2",
        lambda words: [*words[:-1], "l2"],
    ),
    "a network of other channels": (
        lambda base: [*folder(base, MIXED), "--image_mode", "RGB", "--model_config_name_or_path", base / "1.json"],
        "or convert the images with --image_mode",
        lambda words: [*words, "--image_mode", "L"],
    ),
    "a stream without names of classes": (
        lambda base: [*parquet(base), *STREAM, "--class_conditional"],
        "or leave --streaming out",
        lambda words: [*words[:2], words[-1]],
    ),
    "a stream of a folder of images": (
        lambda base: [*folder(base, TWO), "--streaming"],
        "a folder of images is read without it",
        lambda words: words[:-1],
    ),
    "epochs of a stream": (
        lambda base: [*parquet(base), *STREAM, "--num_train_epochs", 1],
        "give --max_train_steps instead",
        lambda words: words[:-2],  # which the test gives
    ),
    "a diffusion model": (
        lambda base: [*arrays(base), "--pretrained_model_name_or_path", ddpm(base / "ddpm"), "--loss", "ict"],
        "--loss must be ect, or act with --objective consistency=ect",
        lambda words: [*words[:-1], "ect", "--align_steps", 4],
    ),
    "a long alignment": (
        lambda base: [*arrays(base), "--loss", "ect", "--align_steps", 8],
        "lower --align_steps",
        lambda words: [*words[:-1], 4],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* images are smaller than:UserWarning")
@pytest.mark.parametrize("name", TRAINING)
def test_a_run_begins_after_what_was_advised(name, tmp_path, monkeypatch, capsys):
    begun = []
    monkeypatch.setattr("diffusers_ict.training.train._train_run", begun.append)
    make, advice, follow = TRAINING[name]
    words = make(tmp_path)
    network = {**TINY, **ONE_LEVEL, "_class_name": "UNet2DModel"}
    for channels in {"L": 1, "RGB": 3, "RGBA": 4}.values():
        config = {**network, "in_channels": channels, "out_channels": channels}
        (tmp_path / f"{channels}.json").write_text(json.dumps(config))

    def code(words: Words) -> int:
        AcceleratorState._reset_state(reset_partial_state=True)
        channels = 3 if "RGB" in words else 4 if "RGBA" in words else 1
        own = ["--train_batch_size", 1] * ("--train_batch_size" not in words)
        own += ["--max_train_steps", 8]
        if not {"--model_config_name_or_path", "--pretrained_model_name_or_path"} & {*map(str, words)}:
            own += ["--model_config_name_or_path", tmp_path / f"{channels}.json"]
        return train.main([*map(str, [*own, *words, "--output_dir", tmp_path / "out"])])

    assert code(words) == 2
    err = capsys.readouterr().err
    assert advice in err
    assert not begun
    assert code(follow(words) if callable(follow) else [*words, *follow]) == 0, (err, capsys.readouterr().err)
    assert begun


def test_every_resolution_that_is_advised_has_a_network():
    for resolution in range(8, 257):
        try:
            default_levels(resolution)
        except UserError as error:
            for advised in str(error).rpartition("`resolution` ")[2].rstrip(".").split(" or "):
                default_levels(int(advised))


@pytest.fixture
def model(tmp_path) -> Path:
    """A model with classes, and the data of its run beside it."""
    write_npz(tmp_path / "data.npz", count=100)
    ConsistencyPipeline(make_unet(num_class_embeds=4).eval(), ICTScheduler()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def unlabelled(base: Path) -> Words:
    np.savez(base / "plain.npz", images=np.load(base / "data.npz")["images"])
    return ["--dataset_name", base / "plain.npz"]


def other_classes(base: Path) -> Words:
    data = np.load(base / "data.npz")
    np.savez(base / "two.npz", images=data["images"], labels=data["labels"] % 2, own=data["labels"])
    return ["--dataset_name", base / "two.npz", "--label_column", "labels"]


EVALUATION: dict[str, tuple[Callable[[Path], Words], str, Words]] = {
    "no labels": (unlabelled, "or draw every class equally often: --labels uniform", ["--labels", "uniform"]),
    "other classes": (other_classes, "with --labels uniform", ["--labels", "uniform"]),
    "another column": (other_classes, "give --label_column", ["--label_column", "own"]),
    "other sizes": (
        lambda base: ["--resolution", 4],
        "give --resolution, --center_crop and --image_mode as in training",
        ["--resolution", 8],
    ),
    "few images": (lambda base: ["--num_samples", 20], "or remove it from --metrics", ["--metrics", "kid"]),
    "twice": (lambda base: ["--steps", 1, 1], "and none twice, got [1, 1]", ["--steps", 1]),
    "no class probabilities": (lambda base: ["--metrics", "is"], "does not give", ["--metrics", "kid"]),
}


@pytest.mark.parametrize("name", EVALUATION)
def test_a_model_is_measured_after_what_was_advised(name, model, tmp_path, capsys):
    make, advice, follow = EVALUATION[name]
    words = arguments(model, tmp_path, "--steps", 1, "--metrics", "kid", "fid", *make(tmp_path))
    assert evaluate.main(words) == 2
    assert advice in capsys.readouterr().err
    assert evaluate.main([*words, *map(str, follow)]) == 0, capsys.readouterr().err


def test_statistics_without_features_and_classes_are_completed_as_advised(model, tmp_path, capsys):
    uniform = ["--steps", 1, "--labels", "uniform"]
    assert evaluate.main(arguments(model, tmp_path, *uniform, "--metrics", "fid")) == 0
    (statistics,) = (tmp_path / "cache").rglob("*.safetensors")
    plain = arguments(model, tmp_path, "--steps", 1, "--metrics", "fid")
    own = [str(word) for word in ["--reference", statistics]]
    words = [*plain[:1], *plain[3:], *own]
    capsys.readouterr()
    assert evaluate.main(words) == 2
    assert "give the data, or --labels uniform" in capsys.readouterr().err
    assert evaluate.main([*words, "--labels", "uniform"]) == 0
    capsys.readouterr()
    assert evaluate.main([*words, "--labels", "uniform", "--metrics", "kid"]) == 2
    assert "for other --metrics, give the real images instead" in capsys.readouterr().err
    assert evaluate.main([*plain, "--labels", "uniform", "--metrics", "kid"]) == 0


def test_words_in_backticks_are_settings_because_programs_show_them_as_flags():
    settings, said = set(), set()
    for file in Path(diffusers_ict.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.arg(arg=name) | ast.AnnAssign(target=ast.Name(id=name)):
                    settings.add(name)
                case ast.Constant(value=str(text)) if text.startswith("--"):
                    settings.add(text[2:])
                case ast.Call(func=ast.Name(id="UserError" | "LabelsError") | ast.Attribute(attr="warn")):
                    texts = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
                    said |= {word for text in texts for word in re.findall(r"`(\w+)`", str(text))}
    assert len(said) > 50
    assert said <= settings
