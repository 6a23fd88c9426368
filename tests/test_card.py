import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, write_npz
from hub_stand_in import mistakes
from huggingface_hub import ModelCard

from diffusers_ict.commands import train as train_ict
from diffusers_ict.hub.card import make_card, merge


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

    import yaml

    from diffusers_ict.training.recipe import parse

    (command,) = re.findall(r"```text\naccelerate launch \S+ (.*)\n```", (folder / "README.md").read_text())
    recipe = parse(shlex.split(command), "test", "")
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    differing = {key for key, value in recipe.as_dict().items() if value != written[key]}
    assert differing <= {"num_validation_images", "license"}, differing


@pytest.mark.parametrize("number", [0, 1, 2])
def test_usage_blocks_run_as_they_stand(folder, number, monkeypatch):
    (folder.parent / "sample.png").unlink(missing_ok=True)
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[number]
    monkeypatch.chdir(folder.parent)
    exec(code, {})
    assert (folder.parent / "sample.png").exists()


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


def test_the_card_of_the_demos_model_is_what_its_results_make():
    stored = ROOT / "model_cards" / "digits"
    assert make_card(stored, "digits").content == (stored / "README.md").read_text()
    assert mistakes((stored / "README.md").read_text()) == []
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


def test_a_card_written_by_hand_is_kept_whole_and_added_to(folder):
    hand = "---\nlicense: mit\n---\n# Mine\n\nAll by hand.\n"
    merged = merge(hand, make_card(folder, "someone/new").content)
    assert "# Mine\n\nAll by hand." in merged
    assert "DiffusionPipeline.from_pretrained" in merged
    assert ModelCard(merged).data.license == "mit"
    assert ModelCard(merged).data.library_name == "diffusers"
