"""The command that measures: the same figures however it is run, and a sentence for what cannot be measured."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_npz
from evaluated import SETTINGS, arguments, figures, refused
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file
from short_run import run, two_processes

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import evaluate
from diffusers_ict.evaluation import Moments, coverage_measures, frechet_distance, kernel_distance
from diffusers_ict.evaluation.report import plot_quality


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A class-conditional run of a moment, and its data beside it."""
    base = tmp_path_factory.mktemp("evaluated")
    write_npz(base / "data.npz", count=100)
    own = ["--dataset_name", base / "data.npz", "--class_conditional", "--max_train_steps", 8, "--train_batch_size", 4]
    assert run(*own, "--ema_decays", 0.9, 0.5, "--num_validation_images", 4, "--output_dir", base / "run") == 0
    return base / "run"


def test_figures_are_those_of_images_drawn_by_hand(run_folder, tmp_path, capsys):
    rows = figures(run_folder, tmp_path, "--steps", 1, 2, "--labels", "uniform")
    table = [line for line in capsys.readouterr().out.splitlines() if "  " in line]
    assert len(table) == 5, "names, and a row for each"
    assert table[0].split() == ["weights", "steps", "frechet", "kid", "precision", "recall", "density", "coverage"]
    assert [line.split()[:3] for line in table[1:]] == [
        [row["variant"] or "published", str(row["num_inference_steps"]), f"{row['metrics']['frechet']:.5g}"]
        for row in rows
    ]
    assert len(set(map(len, table))) == 1, "columns stand below each other"
    assert [(row["num_inference_steps"], row["variant"]) for row in rows] == [
        (1, None), (2, None), (1, "ema5"), (2, "ema5")
    ]  # fmt: skip
    assert rows[1]["sigmas"] == [80.0, 0.821]
    from diffusers_ict.data.draw import EVALUATION, derive_seed

    pipeline = ConsistencyPipeline.from_pretrained(run_folder, variant="ema5")
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for start, size in ((0, 40), (40, 40), (80, 40), (120, 30)):
        generators = [torch.Generator().manual_seed(derive_seed(0, EVALUATION, i)) for i in range(start, start + size)]
        labels = torch.arange(start, start + size) % 4
        drawn += pipeline(size, labels, 2, generator=generators).images
    fake = torch.from_numpy(np.stack([np.asarray(image) for image in drawn]).reshape(150, -1)).float() / 255
    real = torch.from_numpy(np.load(run_folder.parent / "data.npz")["images"].reshape(100, -1)).float() / 255
    got = rows[3]["metrics"]
    assert got["frechet"] == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    assert (got["kid"], got["kid_std"]) == pytest.approx(kernel_distance(real, fake, 100, 50), rel=1e-9)
    assert {key: got[key] for key in ("precision", "recall", "density", "coverage")} == (coverage_measures(real, fake))


def report_of(count, variants=(None, "ema5", "teacher"), steps=(1, 2, 8)):
    """A report whose variants have the same figures; the first metric is a KID below 0."""
    metrics = {"kid": -0.001, "kid_std": 0.002, **{f"metric_{number}": 0.5 for number in range(1, count)}}
    rows = [{"num_inference_steps": n, "variant": variant, "metrics": metrics} for variant in variants for n in steps]
    facts = {"samples": 10, "reference_images": 10, "dataset": "d.npz", "extractor": "pixels", "higher_is_better": []}
    return {"rows": rows, **facts}


@pytest.mark.parametrize("count", range(1, 12))
def test_the_plot_has_no_empty_place_and_shows_every_point(count, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure) or args[0].touch())
    plot_quality(report_of(count), tmp_path / "a.png")
    (figure,) = figures
    assert len(figure.axes) == count
    spans = [panel.get_subplotspec() for panel in figure.axes]
    rows, columns = spans[0].get_gridspec().get_geometry()
    covered = [(span.rowspan.start, column) for span in spans for column in span.colspan]
    assert sorted(covered) == [(row, column) for row in range(rows) for column in range(columns)]
    for number, panel in enumerate(figure.axes):
        lines = [container.lines[0] for container in panel.containers]
        places = np.array([line.get_xdata() for line in lines])
        assert len(np.unique(places)) == 9, "points of equal figures hide each other"
        assert (np.abs(places - [0, 1, 2]) < 0.3).all(), "beside their number of steps"
        assert (panel.get_ylim()[0] < -0.003) if number == 0 else (panel.get_ylim()[0] == 0)
        assert all(max(line.get_ydata()) < panel.get_ylim()[1] for line in lines)


@pytest.mark.slow
def test_figures_do_not_depend_on_the_batch_size(run_folder, tmp_path):
    own = ["--steps", 2, "--variants", "published"]
    (forty,) = figures(run_folder, tmp_path / "a", *own)
    (seven,) = figures(run_folder, tmp_path / "b", *own, "--batch_size", 7)
    # Up to what kernels round otherwise for another batch, which moves a pixel by one level at most.
    assert seven["metrics"]["frechet"] == pytest.approx(forty["metrics"]["frechet"], rel=1e-4)
    (other,) = figures(run_folder, tmp_path / "a", *own, "--seed", 1)
    assert other["metrics"]["frechet"] != pytest.approx(forty["metrics"]["frechet"], rel=3e-4)


def test_twice_is_the_same_and_the_report_tells_what_was_measured(run_folder, tmp_path):
    first = figures(run_folder, tmp_path / "a", "--steps", 1)
    assert first == figures(run_folder, tmp_path / "b", "--steps", 1)
    assert first != figures(run_folder, tmp_path / "a", "--steps", 1, "--seed", 1)
    report = json.loads((tmp_path / "b" / "out" / "evaluation.json").read_text())
    for key, value in {"dataset": "data.npz", "split": None, "samples": 150, "reference_images": 100, "seed": 0,
                       "extractor": "raw pixels in [0, 1]", "resize": "none", "flipped": False}.items():  # fmt: skip
        assert report[key] == value, key
    assert len(report["reference"]) == 20
    assert report["settings"]["kid"]["subset_size"] == 50, "half of the 100 real images"
    assert report["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(report)
    assert (tmp_path / "b" / "out" / "evaluation.png").stat().st_size > 5000


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(run_folder, tmp_path):
    """Also where the last batches are not full: 150 samples by 40, and 100 real images."""
    one = figures(run_folder, tmp_path / "one")
    done = two_processes(
        "evaluate.py", *arguments(run_folder, tmp_path / "two"), "--output_dir", tmp_path / "two" / "out"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "out" / "evaluation.json").read_text())["rows"]
    assert [row["sigmas"] for row in two] == [row["sigmas"] for row in one]
    for ours, theirs in zip(one, two):
        assert theirs["metrics"] == pytest.approx(ours["metrics"], rel=1e-6)


@pytest.mark.slow
def test_statistics_are_kept_by_content_and_can_be_shared(run_folder, tmp_path):
    common = ["--steps", 1, "--labels", "uniform"]
    rows = figures(run_folder, tmp_path, *common)
    (kept,) = (tmp_path / "cache").glob("reference-*.safetensors")
    stored = load_file(kept)
    assert stored["features"].shape == (100, 64)
    real = torch.from_numpy(np.load(run_folder.parent / "data.npz")["images"].reshape(100, -1)).float() / 255
    moments = Moments.of(real)
    torch.testing.assert_close(stored["mean"], moments.mean)
    torch.testing.assert_close(stored["covariance"], moments.covariance)
    time_of_writing = kept.stat().st_mtime_ns

    shutil.copy(run_folder.parent / "data.npz", tmp_path / "renamed.npz")
    figures(run_folder, tmp_path, *common, "--dataset_name", tmp_path / "renamed.npz")
    assert kept.stat().st_mtime_ns == time_of_writing
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["dataset"] == "renamed.npz"
    figures(run_folder, tmp_path, *common, "--flip_reference")
    assert len(list((tmp_path / "cache").glob("reference-*.safetensors"))) == 2
    flipped = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (flipped["flipped"], flipped["reference_images"]) == (True, 200)

    shared = [str(run_folder), "--reference", str(kept), *SETTINGS, "--labels", "uniform", "--steps", "1"]
    assert evaluate.main([*shared, "--cache_dir", str(tmp_path / "c"), "--output_dir", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"] == rows


def test_images_of_a_file_are_measured_like_a_models(run_folder, tmp_path):
    rows = figures(run_folder, tmp_path, "--steps", 1, "--variants", "published")
    data = np.load(run_folder.parent / "data.npz")["images"]
    noisy = data.astype(int) + np.random.default_rng(0).integers(-30, 30, data.shape)
    np.savez(tmp_path / "noisy.npz", images=noisy.clip(0, 255).astype(np.uint8))
    np.savez(tmp_path / "same.npz", images=data)
    got = {}
    for name in ("noisy", "same"):
        own = arguments(tmp_path / f"{name}.npz", tmp_path, "--output_dir", tmp_path / "out")
        own[own.index("--dataset_name") + 1] = str(run_folder.parent / "data.npz")
        assert evaluate.main(own) == 0
        report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert report["samples"] == 100
        got[name] = report["rows"][0]["metrics"]
    assert abs(got["same"]["frechet"]) < 1e-6 < got["noisy"]["frechet"] < rows[0]["metrics"]["frechet"]
    assert got["same"]["precision"] == got["same"]["coverage"] == 1.0


def test_a_folder_of_images_is_measured_like_a_file(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = np.load(run_folder.parent / "data.npz")["images"]
    noisy = (data + np.random.default_rng(0).integers(-30, 30, data.shape)).clip(0, 255).astype(np.uint8)
    np.savez(tmp_path / "noisy.npz", images=noisy)
    for number, image in enumerate(noisy):
        path = tmp_path / "noisy" / f"{number % 3}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    real = ["--dataset_name", run_folder.parent / "data.npz"]
    rows = []
    for model in ("noisy.npz", "noisy"):
        assert evaluate.main(arguments(tmp_path / model, tmp_path, *real)) == 0
        report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
        assert report["samples"] == 100
        rows.append(report["rows"][0]["metrics"])
    assert rows[0].keys() == rows[1].keys()
    for name, value in rows[0].items():  # in another order, which KID's subsets depend on
        assert rows[1][name] == pytest.approx(value, rel=1e-6) or name.startswith("kid")
    assert not list((tmp_path / "noisy").glob("evaluation*")), "the report would be an image of the next evaluation"

    capsys.readouterr()
    refused(
        capsys, "give the model as a local folder", *arguments(tmp_path / "noisy", tmp_path, *real, "--tune_sigmas", 2)
    )
    (tmp_path / "neither").mkdir()
    (tmp_path / "neither" / "notes.txt").write_text("nothing")
    refused(capsys, "no consistency pipeline could be loaded", *arguments(tmp_path / "neither", tmp_path, *real))
    (tmp_path / "noisy" / "recipe.yaml").write_text("seed: 1")  # a run that has no model yet, and grids of samples
    refused(capsys, "no consistency pipeline could be loaded", *arguments(tmp_path / "noisy", tmp_path, *real))


def test_the_card_and_its_metadata_show_the_figures(run_folder, tmp_path):
    model = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copy(run_folder.parent / "data.npz", tmp_path / "data.npz")
    assert evaluate.main(arguments(model, tmp_path, "--steps", 1, 2)) == 0
    rows = json.loads((model / "evaluation.json").read_text())["rows"]
    text = (model / "README.md").read_text()
    assert f"| 2 | ema5 | {rows[3]['metrics']['frechet']:.4g} | " in text
    assert "150 samples against 100 images of data.npz (" in text
    assert "![Quality against the number of steps](evaluation.png)" in text
    results = ModelCard(text).data.eval_results
    values = {result.metric_name: result.metric_value for result in results}
    assert values["frechet, 2 steps"] == float(f"{rows[1]['metrics']['frechet']:.4g}")
    assert values["recall, 1 step"] == float(f"{rows[0]['metrics']['recall']:.4g}")
    assert len(values) == len(results) == 2 * sum(not name.endswith("_std") for name in rows[0]["metrics"])
    assert results[0].dataset_args["samples"] == 150


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("inspection.json", "{", "cannot be read as JSON"),
        ("inspection.json", "[" * 100_000, "cannot be read as JSON"),
        ("inspection.json", '{"samples": "many"}', "one of which has other entries than it should"),
        ("README.md", "---\na: [\n---\n", "must be a YAML mapping"),
        ("evaluation.json", "{", None),
    ],
)
def test_a_damaged_file_of_the_card_does_not_cost_the_report(run_folder, tmp_path, name, content, message):
    model = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copy(run_folder.parent / "data.npz", tmp_path / "data.npz")
    (model / name).write_text(content)
    own = arguments(model, tmp_path, "--steps", 1, "--variants", "published", "--metrics", "kid", "--num_samples", 8)
    expected = pytest.warns(UserWarning, match=f"report is written, but not into the model card: .*{message}")
    with expected if message else nullcontext():
        assert evaluate.main(own) == 0
    assert json.loads((model / "evaluation.json").read_text())["samples"] == 8
    assert (model / "evaluation.png").is_file()


@pytest.mark.slow
def test_tuned_levels_are_written_and_compared_on_noise_that_the_search_did_not_see(run_folder, tmp_path, capsys):
    from diffusers import DiffusionPipeline

    model = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copy(run_folder.parent / "data.npz", tmp_path / "data.npz")
    own = ["--tune_sigmas", 3, "--variants", "published", "--metrics", "kid", "--steps", 2, 3]
    own += ["--tune_metric", "kid", "--num_samples", 40]
    assert evaluate.main(arguments(model, tmp_path, *own)) == 0
    out, card = capsys.readouterr().out, (model / "README.md").read_text()
    report = json.loads((model / "evaluation.json").read_text())
    tuned = report["tuned"]
    assert tuned["old_levels"]["2"] == [0.821]
    assert tuned["adopted"]
    assert sum(tuned["after"].values()) < sum(tuned["before"].values())
    assert "Written into the scheduler." in out
    assert ICTScheduler.from_pretrained(model, subfolder="scheduler").config.intermediate_sigmas == tuned["levels"]
    stock = DiffusionPipeline.from_pretrained(model).scheduler
    stock.set_timesteps(2)
    assert stock.sigmas[1].item() == pytest.approx(tuned["levels"][0], rel=1e-5)
    assert report["samples"] == tuned["samples"] == 40
    tried = {value for search in tuned["tried"] for _, value in search}
    for row in report["rows"]:
        steps, value = row["num_inference_steps"], row["metrics"]["kid"]
        assert row["sigmas"] == [80.0, *tuned["levels"][: steps - 1]]
        assert value == tuned["after"][str(steps)], "a row has other noise than the comparison"
        assert value not in tried, "a row has the noise of the search"
        assert f"{value:.5g} through" in out
        assert f"| {steps} | published | {value:.4g} ±" in card
    assert f"sigmas=[80.0, {tuned['levels'][0]}" in card
    assert "With three or more steps, stock diffusers uses other noise levels" in card
