import json
import re
import shutil
from pathlib import Path

import inspect_model
import numpy as np
import pytest
import yaml
from conftest import ROOT, write_npz
from hub_stand_in import mistakes
from huggingface_hub import ModelCard
from PIL import Image

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import train as train_ict
from diffusers_ict.errors import UserError
from diffusers_ict.hub.card import PIPELINE, make_card, merge, renewed_card, write_card


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A class-conditional run of a moment."""
    base = tmp_path_factory.mktemp("run")
    data = write_npz(base / "data.npz")
    flags = ["--dataset_name", data, "--class_conditional", "--max_train_steps", 8, "--train_batch_size", 4]
    more = ["--ema_decays", 0.9, 0.5, "--num_validation_images", 4, "--license", "cc-by-4.0"]
    more += ["--output_dir", base / "my-digits"]
    assert train_ict.main([str(flag) for flag in [*flags, *more]]) == 0
    return base / "my-digits"


def test_the_card_tells_the_run(folder):
    text = (folder / "README.md").read_text()
    assert "class-conditional consistency model of 8x8 grey images" in text
    assert "data.npz: 64 images, 4 classes" in text
    assert "8 of 4 images, 32 images seen" in text
    assert 'variant="ema5"' in text
    card = ModelCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "consistency-models" in card.data.tags
    for link in re.findall(r"\]\((?!https)([^)]*)\)", text):
        assert (folder / link).exists(), link


def test_the_command_in_the_card_parses_to_the_same_recipe(folder):
    import shlex

    from diffusers_ict.training.recipe import parse

    (command,) = re.findall(r"```text\naccelerate launch \S+ (.*)\n```", (folder / "README.md").read_text())
    recipe = parse(shlex.split(command), "test", "")
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    differing = {key for key, value in recipe.as_dict().items() if value != written[key]}
    assert differing <= {"num_validation_images", "license"}, differing


@pytest.mark.parametrize("number", [0, 1, 2])
def test_usage_blocks_run_as_they_stand(folder, number, monkeypatch):
    (folder.parent / "sample.png").unlink(missing_ok=True)
    code = python_blocks((folder / "README.md").read_text())[number]
    monkeypatch.chdir(folder.parent)
    exec(code, {})
    assert (folder.parent / "sample.png").exists()


def test_names_of_classes_go_from_sub_folders_into_the_pipeline_and_the_card(tmp_path, monkeypatch):
    for name, value in (("cat", 60), ("dog", 190)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((8, 8), value + number, np.uint8)).save(tmp_path / "pets" / name / f"{number}.png")
    own = ["--train_data_dir", tmp_path / "pets", "--image_mode", "L", "--class_conditional", "--max_train_steps", 8]
    own += ["--train_batch_size", 4, "--num_validation_images", 2, "--output_dir", tmp_path / "pets-model"]
    assert train_ict.main([str(flag) for flag in own]) == 0
    assert json.loads((tmp_path / "pets-model" / "labels.json").read_text()) == {"id2label": {"0": "cat", "1": "dog"}}
    card = (tmp_path / "pets-model" / "README.md").read_text()
    assert "Classes by number: 0 `cat`, 1 `dog`." in card
    assert card.index("Classes by number") < card.index("```python")
    stock, ours, remote = python_blocks(card)
    assert "class_labels=0" in stock
    assert 'class_labels="cat"' in ours
    assert "class_labels=0" in remote
    monkeypatch.chdir(tmp_path)
    exec(ours, {})
    assert (tmp_path / "sample.png").exists()
    assert ConsistencyPipeline.from_pretrained(tmp_path / "pets-model").id2label == {0: "cat", 1: "dog"}


def test_twenty_names_of_classes_are_listed(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    names = {str(number): f"kind `{number}`" for number in range(25)}
    (model / "labels.json").write_text(json.dumps({"id2label": names}))
    card = make_card(model, "someone/new").content
    assert "18 `kind '18'`, 19 `kind '19'` and 5 more." in card
    assert 'class_labels="kind `0`"' in card
    assert merge(card, card) == card


def change_levels(model: Path, levels: list[float]) -> None:
    path = model / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config["_ict"]["intermediate_sigmas"] = levels
    path.write_text(json.dumps(config))


def test_the_card_says_where_stock_diffusers_uses_other_levels(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    assert "three or more steps" not in make_card(model, "someone/new").content
    change_levels(model, [2.5, 0.31])
    card = make_card(model, "someone/new").content
    assert "With three or more steps stock diffusers uses other noise levels than the ones" in card
    assert "up to 3 steps" in card
    assert "`sigmas=[80.0, 2.5, 0.31]`" in card
    change_levels(model, [])
    assert "sigmas=[80.0, 0.821]" in make_card(model, "someone/new").content, "the middle of the grid"


def test_the_card_of_a_converted_model_says_where_stock_diffusers_uses_other_levels(folder, tmp_path):
    from diffusers_ict.commands import convert

    levels = ["--intermediate_sigmas", "1.5", "0.4"]
    assert convert.main([str(folder), str(tmp_path / "converted"), *levels]) == 0
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "With three or more steps stock diffusers uses other noise levels" in card


def test_what_an_inspection_finds_is_in_the_card(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    unknown = "Whether it repeats training images was not examined."
    assert unknown in (model / "README.md").read_text()
    words = [
        model,
        "--dataset_name",
        folder.parent / "data.npz",
        "--num_samples",
        60,
        "--output_dir",
        tmp_path / "seen",
    ]
    assert inspect_model.main([str(word) for word in words]) == 0
    found = json.loads((model / "inspection.json").read_text())
    assert (tmp_path / "seen" / "inspection.json").is_file()
    card = (model / "README.md").read_text()
    assert unknown not in card
    assert f"Of 60 samples drawn with two steps, {found['copies']:.1%} count as copies of a training image" in card
    assert "features of raw pixels in [0, 1]." in card
    assert str(tmp_path) not in (model / "inspection.json").read_text()


REPORT = {
    "dataset": "some digits", "split": "train", "samples": 2000, "reference": "abc", "reference_images": 1797,
    "flipped": True, "extractor": "toy", "extractor_weights": "0123456789abcdef", "resize": "none",
    "command": "measure",
    "rows": [
        {"num_inference_steps": 1, "variant": None, "metrics": {"frechet": 12.5, "kid": 0.5, "kid_std": 0.01}},
        {"num_inference_steps": 2, "variant": "ema5", "metrics": {"frechet": 9.25, "kid": 0.25, "kid_std": 0.02}},
    ],
}  # fmt: skip


def test_evaluations_become_model_index_and_a_table(folder):
    old = (folder / "README.md").read_text()
    assert "## Evaluation" not in old
    (folder / "evaluation.json").write_text(json.dumps(REPORT))
    try:
        card = make_card(folder, "someone/my-digits", license="mit")
    finally:
        (folder / "evaluation.json").unlink()
    assert "| 2 | ema5 | 9.25 | 0.25 ± 0.02 |" in card.text
    assert "2,000 samples against 1,797 images of some digits, train, each also mirrored (statistics abc)" in card.text
    assert "by features of toy (weights 0123456789ab, resize: none)" in card.text
    again = ModelCard(card.content)
    values = {(r.metric_type, r.metric_args["num_inference_steps"]): r.metric_value for r in again.data.eval_results}
    assert values == {("frechet", 1): 12.5, ("frechet", 2): 9.25, ("kid", 1): 0.5, ("kid", 2): 0.25}
    assert again.data.license == "mit"
    assert mistakes(card.content) == []
    assert "| 2 | ema5 | 9.25 |" in merge(old, card.content), "an evaluation made later is not shown"


def test_settings_of_the_method_may_stand_in_a_block_of_their_own(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    recipe = yaml.safe_load((model / "recipe.yaml").read_text())
    block = {"s0": 10, "s1": 40, "consistency": "ect"}
    recipe = {key: value for key, value in recipe.items() if key not in block}
    (model / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "loss": "act", "objective": block}, sort_keys=False))
    card = make_card(model, "someone/new").content
    assert "| method's settings | s0 10, s1 40, consistency ect |" in card
    assert all(paper in card for paper in ("ACT-Diffusion", "Consistency Models Made Easy"))
    assert "method's settings" not in (folder / "README.md").read_text()


def test_a_damaged_card_is_not_renewed(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    (model / "README.md").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot be renewed: .* must be text in UTF-8"):
        write_card(model)
    assert (model / "README.md").read_bytes() == b"\xff"


def test_a_card_that_is_renewed_twice_is_that_renewed_once(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "renamed")
    (model / "evaluation.json").write_text(json.dumps(REPORT))
    write_card(model)
    once = (model / "README.md").read_text()
    write_card(model)
    assert (model / "README.md").read_text() == once


@pytest.mark.parametrize("name", ["digits", "fashion32"])
def test_the_card_of_a_committed_model_is_what_its_results_make(name):
    stored = ROOT / "model_cards" / name
    assert make_card(stored, name).content == (stored / "README.md").read_text()
    assert mistakes((stored / "README.md").read_text()) == []
    if (stored / "pipeline.py").is_file():  # saved with the weights
        assert (stored / "pipeline.py").read_text() == PIPELINE.read_text()


def test_the_figures_of_the_demos_model_are_those_of_its_evaluation():
    stored = ROOT / "model_cards" / "digits"
    report = json.loads((stored / "demo.json").read_text())
    rows = json.loads((stored / "evaluation.json").read_text())["rows"]
    assert [row["metrics"]["frechet"] for row in rows] == [report["frechet_1"], report["frechet_2"]]


def test_an_untouched_card_is_renewed(folder):
    old = make_card(folder, "someone/old").content
    new = make_card(folder, "someone/new").content
    merged = merge(old, new)
    assert "someone/new" in merged
    assert "someone/old" not in merged
    assert merge(merged, new) == merged


def test_what_was_edited_survives(folder):
    old = make_card(folder, "someone/old").content
    edited = old.replace("Nothing filters its", "We filter nothing of its").replace("# old", "# My digits\n\nHello.")
    edited = edited.replace("license: cc-by-4.0", "license: cc0-1.0")
    edited = re.sub(r"<!-- diffusers-ict:citation.*?<!-- /diffusers-ict -->", "None needed.", edited, flags=re.S)
    merged = merge(edited, make_card(folder, "someone/new", license="mit").content)
    assert "We filter nothing of its" in merged
    assert "# My digits\n\nHello." in merged
    assert "None needed." in merged
    assert "Improved Techniques" not in merged
    assert "someone/new" in merged, "an untouched section was not renewed"
    assert ModelCard(merged).data.license == "cc0-1.0"


def test_a_licence_that_is_given_replaces_the_one_of_the_card(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    card = model / "README.md"
    edited = card.read_text().replace("license: cc-by-4.0", "license: other\nlicense_name: mine\nlicense_link: LICENSE")
    card.write_text(edited.replace("# my-digits", "# My digits"))
    assert ModelCard(renewed_card(model)).data.license == "other"
    assert ModelCard(renewed_card(model, license="other")).data.license_name == "mine"
    renewed = ModelCard(renewed_card(model, license="mit"))
    assert renewed.data.license == "mit"
    assert not {"license_name", "license_link"} & set(renewed.data.to_dict())
    assert "# My digits" in renewed.text


def test_a_card_written_by_hand_is_kept_whole_and_added_to(folder):
    hand = "---\nlicense: mit\n---\n# Mine\n\nAll by hand.\n"
    merged = merge(hand, make_card(folder, "someone/new").content)
    assert "# Mine\n\nAll by hand." in merged
    assert "DiffusionPipeline.from_pretrained" in merged
    assert ModelCard(merged).data.license == "mit"
    assert ModelCard(merged).data.library_name == "diffusers"
