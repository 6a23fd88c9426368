"""Streams: the order of the images is a function of seed and place, and a resumed run is the uninterrupted one."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from short_run import ICT, final_tensors, run, two_processes
from test_images import encoded

from diffusers_ict.data.dataset import Images
from diffusers_ict.data.load import load_images
from diffusers_ict.data.settings import DataSettings
from diffusers_ict.data.stream import StreamedImages
from diffusers_ict.errors import UserError
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.samples import rows_in_turn
from diffusers_ict.training.train import train


@pytest.fixture
def stream(tmp_path):
    """Makes streams of grey images whose first pixel is their number in the data set, in shards of some sizes."""

    def make(sizes=(7, 5, 9), buffer=6, seed=0, rank=0, ranks=1, classes=None) -> StreamedImages:
        where = tmp_path / f"{sizes} {classes}"
        first = np.cumsum([0, *sizes])
        for shard in () if where.exists() else range(len(sizes)):  # another stream may be reading them
            where.mkdir(exist_ok=True)
            numbers = np.arange(first[shard], first[shard + 1])
            images = np.broadcast_to(numbers[:, None, None], (len(numbers), 8, 8)).astype(np.uint8)
            np.savez(where / f"{shard}.npz", images=images, labels=numbers % (classes or 1))
        return StreamedImages(DataSettings(dataset_name=str(where)), bool(classes), buffer, seed, rank, ranks)

    return make


def taken(images: StreamedImages, count: int) -> list[int]:
    return images.take(count)[0][:, 0, 0, 0].tolist()


def test_an_epoch_holds_every_image_once_and_the_next_one_has_another_order(stream):
    images = stream(buffer=7)
    first, second = taken(images, 21), taken(images, 21)
    assert sorted(first) == sorted(second) == list(range(21))
    assert len({tuple(order) for order in (first, second, sorted(first), taken(stream(buffer=7, seed=1), 21))}) == 4
    assert taken(stream(buffer=7), 21) == first
    placed = taken(stream(buffer=1), 21)  # blocks of one image are not shuffled
    assert [sorted(first[n : n + 7]) for n in (0, 7, 14)] == [sorted(placed[n : n + 7]) for n in (0, 7, 14)]


@pytest.mark.parametrize("size", [1, 4, 6, 13])
def test_the_images_do_not_depend_on_how_many_are_taken_at_once(stream, size):
    images = stream()
    assert [n for _ in range(52 // size) for n in taken(images, size)] == taken(stream(), 52 // size * size)


@pytest.mark.parametrize("before", [1, 3, 6, 20, 21, 47])
def test_a_stream_goes_on_from_a_place_as_if_it_had_never_stopped(stream, before):
    images = stream(classes=4)
    taken(images, before)
    place = json.loads(json.dumps(images.place))
    later = stream(classes=4)
    later.seek([place])
    for _ in range(3):
        (x, labels), (y, again) = images.take(11), later.take(11)
        assert x.equal(y)
        assert labels.equal(again)
        assert labels.equal(x[:, 0, 0, 0].long() % 4)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_processes_share_an_epoch_among_them(stream, ranks):
    """Whole shards each, or every n-th image where there are fewer shards than processes."""
    seen = Counter()
    for rank in range(ranks):
        images = stream((10, 10, 10), 2, 0, rank, ranks)
        seen.update(taken(images, {2: (20, 10), 3: (10, 10, 10), 5: (6,) * 5}[ranks][rank]))
    assert seen == Counter(range(30))


def test_other_processes_begin_an_epoch_that_nobody_has_begun(stream):
    places = []
    for rank in range(2):
        images = stream((4, 4), buffer=4, rank=rank, ranks=2)
        taken(images, 6 + 4 * rank)  # one is in its second epoch, one in its third
        places.append(images.place)
    alone = stream((4, 4), buffer=4)
    alone.seek(places)
    assert alone.place["epoch"] == 3
    assert sorted(taken(alone, 8)) == list(range(8))


def test_what_cannot_be_streamed_is_said_in_a_sentence(stream, tmp_path):
    with pytest.raises(UserError, match="the stream holds no images"):
        stream((0, 0))
    for own, message in (
        ({"train_data_dir": str(tmp_path / "images")}, "which `dataset_name` names"),
        ({"dataset_name": "a/b", "image_cache_dir": "c"}, "`image_cache_dir` means nothing for a stream"),
    ):
        with pytest.raises(UserError, match=message):
            train(Recipe(streaming=True, **own, output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    np.savez(tmp_path / "1.npz", images=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(UserError, match="classes need labels, and the data has none"):
        StreamedImages(DataSettings(dataset_name=str(tmp_path)), True, 4, 0)
    np.savez(tmp_path / "2.npz", images=np.zeros((4, 16, 16), np.uint8))
    images = StreamedImages(DataSettings(dataset_name=str(tmp_path)), False, 4, 0)
    with pytest.raises(UserError, match=r"the first is (8x8|16x16) of 1, and number 0 is (8x8|16x16) of 1; give"):
        images.take(5)


def test_labels_of_parts_of_downsampled_imagenet_count_from_one(tmp_path):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (10, 3, 16, 16), np.uint8)
    labels = np.arange(10) % 5
    for part in range(2):
        own = slice(5 * part, 5 * part + 5)
        flat = whole[own].reshape(5, -1)
        np.savez(tmp_path / f"train_data_batch_{part + 1}.npz", data=flat, labels=labels[own] + 1, mean=flat.mean(0))
    images = StreamedImages(DataSettings(dataset_name=str(tmp_path)), True, 10, 0)
    assert (images.data.num_shards, images.num_classes, images.count) == (2, 5, 10)
    x, read = images.take(10)
    known = {picture.tobytes(): label for picture, label in zip(whole, labels)}
    assert [known[picture.tobytes()] for picture in x.numpy()] == read.tolist()


@pytest.fixture
def parquet(tmp_path):
    """A folder of three parquet files with twelve images each, as a data set has them on the Hub."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["dark", "light"]), "id": Value("int64")})
    (tmp_path / "data").mkdir()
    for shard in range(3):
        numbers = range(12 * shard, 12 * shard + 12)
        rows = {"image": [{"bytes": encoded(Image.new("L", (8, 8), 7 * n)), "path": None} for n in numbers]}
        rows |= {"label": [int(n >= 18) for n in numbers], "id": list(numbers)}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"train-{shard}.parquet")
    return tmp_path / "data"


def test_a_folder_of_parquet_files_is_read_and_a_stream_that_breaks_is_said(parquet):
    images = StreamedImages(DataSettings(dataset_name=str(parquet)), True, 36, 0)
    assert (images.data.num_shards, images.class_names) == (3, ("dark", "light"))
    x, labels = images.take(36)
    assert sorted(x[:, 0, 0, 0].tolist()) == [7 * n for n in range(36)]
    assert labels.equal((x[:, 0, 0, 0] >= 7 * 18).long())
    for change, message in (
        ({"label_column": "id"}, "must be a column of type ClassLabel"),
        ({"dataset_split": "test"}, "opened"),
    ):
        with pytest.raises(UserError, match=message):
            StreamedImages(DataSettings(dataset_name=str(parquet), **change), True, 36, 0)
    images = StreamedImages(DataSettings(dataset_name=str(parquet)), False, 4, 0)
    for file in parquet.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"the stream cannot be read \(.*train-.\.parquet.*\): go on later"):
        images.take(36)


@pytest.fixture
def streamed(parquet, flags) -> list[str]:
    own = ["--dataset_name", str(parquet), "--streaming", "--shuffle_buffer", "10", "--checkpoints_total_limit", "9"]
    return [*ICT, *flags, *own]


def test_a_resumed_run_on_a_copy_of_its_stream_is_the_uninterrupted_one(streamed, parquet, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*streamed, "--num_train_epochs", 2, "--output_dir", whole) == 2
    assert "--num_train_epochs needs a data set that says how many" in capsys.readouterr().err
    assert not whole.exists()
    assert run(*streamed, "--output_dir", whole) == 0
    printed = capsys.readouterr().out
    assert "3 shards, shuffled in blocks of 10 images" in printed
    assert "8x8, 10 L in the first block" in printed
    streamed += ["--dataset_name", shutil.copytree(parquet, tmp_path / "elsewhere" / "data")]
    assert run(*streamed, "--output_dir", parts, "--resume_from_checkpoint", whole / "checkpoint-15") == 0
    ours, theirs = final_tensors(parts), final_tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "a stream of images" in (whole / "README.md").read_text()
    again = [*streamed, "--output_dir", parts, "--resume_from_checkpoint", "latest"]
    assert run(*again, "--shuffle_buffer", 9) == 2
    assert "made with shuffle_buffer 10" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_a_stream_goes_on_with_other_processes_if_that_is_allowed(streamed, tmp_path, capsys):
    out = tmp_path / "out"
    done = two_processes("train_ict.py", *streamed, "--gradient_accumulation_steps", 1, "--output_dir", out)
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads((out / "checkpoint-24" / "state.json").read_text())
    assert [place["block"] for place in state["stream"]] == [9, 9]  # 24 steps of 4 images, in blocks of 10
    alone = [*streamed, "--output_dir", tmp_path / "alone", "--resume_from_checkpoint", out / "checkpoint-15"]
    assert run(*alone) == 2
    assert "made with other images" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="rounds otherwise"):
        assert run(*alone, "--resume_with_changes") == 0


def test_a_class_without_an_example_is_shown_blank_and_not_as_another():
    images = Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([1, 1]), 3)
    first, again, *others = rows_in_turn(images, torch.tensor([1, 1, 1, 0, 2]), 5, seed=0).tolist()
    assert {first, again} == {0, 1}
    assert others == [first, -1, -1]


@pytest.mark.parametrize("named", [{}, {"image_column": "label"}])
def test_a_column_of_images_may_be_called_label(tmp_path, named):
    features = Features({"label": ImageFeature(), "image": ClassLabel(names=["a", "b"])})
    rows = {"label": [Image.new("L", (8, 8), i) for i in range(4)], "image": [0, 1, 1, 0]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    settings = DataSettings(dataset_name=str(tmp_path / "d.parquet"), **named)
    pixels, labels = StreamedImages(settings, True, 4, 0).take(4)
    assert dict(zip(pixels[:, 0, 0, 0].tolist(), labels.tolist())) == {0: 0, 1: 1, 2: 1, 3: 0}
    read = load_images(settings, class_conditional=True)
    assert (read.labels.tolist(), read.class_names) == ([0, 1, 1, 0], ("a", "b"))


VIEWS = [{"type": "torch", "columns": ["image"]}, {"type": "numpy", "dtype": "f2"}, {"type": "arrow"}]


@pytest.mark.parametrize("view", VIEWS)
def test_a_saved_view_changes_nothing_that_is_read(tmp_path, view):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"]), "note": Value("string")})
    rows = {"image": [Image.new("L", (8, 8), i) for i in range(4)], "label": [0, 1, 1, 0], "note": ["", "", "", ""]}
    data = Dataset.from_dict(rows, features=features)
    data.with_format(**view).save_to_disk(tmp_path / "d")
    settings = DataSettings(dataset_name=str(tmp_path / "d"))
    read = load_images(settings, class_conditional=True)
    assert (read.pixels[:, 0, 0, 0].tolist(), read.labels.tolist()) == ([0, 1, 2, 3], [0, 1, 1, 0])
    pixels, labels = StreamedImages(settings, True, 4, 0).take(4)
    assert dict(zip(pixels[:, 0, 0, 0].tolist(), labels.tolist())) == {0: 0, 1: 1, 2: 1, 3: 0}
