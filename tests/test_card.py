import json
import re
import shlex

import pytest
import yaml
from conftest import ROOT
from hub_stand_in import mistakes
from huggingface_hub import ModelCard
from test_images import folder, solid

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import convert, inspect_model
from diffusers_ict.commands import train as train_ict
from diffusers_ict.errors import UserError
from diffusers_ict.hub.card import PIPELINE, make_card, merge, renewed_card, sealed, write_card


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.S)


def test_the_card_tells_the_run(digits):
    text = (digits / "README.md").read_text()
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
        assert (digits / link).exists(), link


def test_the_command_in_the_card_parses_to_the_same_recipe(digits):
    from diffusers_ict.training.recipe import parse

    (command,) = re.findall(r"```text\ndiffusers-ict train (.*)\n```", (digits / "README.md").read_text())
    recipe = parse(shlex.split(command), "test", "")
    written = yaml.safe_load((digits / "recipe.yaml").read_text())
    differing = {key for key, value in recipe.as_dict().items() if value != written[key]}
    assert differing <= {"num_validation_images", "license"}, differing


@pytest.mark.parametrize("number", [0, 1, 2])
def test_usage_blocks_run_as_they_stand(run, number, monkeypatch):
    code = python_blocks((run / "README.md").read_text())[number]
    monkeypatch.chdir(run.parent)
    exec(code, {})
    assert (run.parent / "sample.png").exists()


def test_names_of_classes_go_from_sub_folders_into_the_pipeline_and_the_card(tmp_path, monkeypatch):
    pictures = {f"{name}/{n}.png": solid("L", colour=60 + n) for name in ("cat", "dog") for n in range(4)}
    own = ["--train_data_dir", folder(tmp_path / "pets", pictures), "--class_conditional", "--max_train_steps", 8]
    own += ["--train_batch_size", 4, "--num_validation_images", 2, "--output_dir", tmp_path / "pets-model"]
    assert train_ict.main([str(flag) for flag in own]) == 0
    card = (tmp_path / "pets-model" / "README.md").read_text()
    assert card.index("Classes by number: 0 `cat`, 1 `dog`.") < card.index("```python")
    stock, ours, remote = python_blocks(card)
    assert "class_labels=0" in stock
    assert 'class_labels="cat"' in ours
    assert "class_labels=0" in remote
    monkeypatch.chdir(tmp_path)
    exec(ours, {})
    assert (tmp_path / "sample.png").exists()
    assert ConsistencyPipeline.from_pretrained(tmp_path / "pets-model").id2label == {0: "cat", 1: "dog"}


def test_twenty_names_of_classes_are_listed(run):
    names = {str(number): f"kind `{number}`" for number in range(25)}
    (run / "labels.json").write_text(json.dumps({"id2label": names}))
    card = make_card(run, "someone/new").content
    assert "18 `kind '18'`, 19 `kind '19'` and 5 more." in card
    assert 'class_labels="kind `0`"' in card


def test_the_card_says_where_stock_diffusers_uses_other_levels(run, tmp_path):

    def card_of(levels: list[float]) -> str:
        path = run / "scheduler" / "scheduler_config.json"
        config = json.loads(path.read_text())
        config["_ict"]["intermediate_sigmas"] = levels
        path.write_text(json.dumps(config))
        return make_card(run, "someone/new").content

    assert "sigmas=[80.0, 0.821]" in card_of([]), "the middle of the grid"
    assert "three or more steps" not in card_of([0.5])
    card = card_of([2.5, 0.31])
    assert convert.main([str(run), str(tmp_path / "converted"), "--intermediate_sigmas", "2.5", "0.31"]) == 0
    for text in (card, (tmp_path / "converted" / "README.md").read_text()):
        assert "With three or more steps, stock diffusers uses other noise levels than those" in text
        assert "up to 3 steps" in text
        assert "`sigmas=[80.0, 2.5, 0.31]`" in text


def test_what_an_inspection_finds_is_in_the_card(run, digits, tmp_path):
    unknown = "Whether it repeats training images was not examined."
    assert unknown in (run / "README.md").read_text()
    data, seen = digits.parent / "data.npz", tmp_path / "seen"
    words = [run, "--dataset_name", data, "--num_samples", 60, "--output_dir", seen]
    assert inspect_model.main([str(word) for word in words]) == 0
    found = json.loads((run / "inspection.json").read_text())
    assert (seen / "inspection.json").is_file()
    card = (run / "README.md").read_text()
    assert unknown not in card
    assert f"Of 60 samples drawn with two steps, {found['copies']:.1%} count as copies of a training image" in card
    assert "features of raw pixels in [0, 1]." in card
    assert str(tmp_path) not in (run / "inspection.json").read_text()


REPORT = {
    "dataset": "some digits", "split": "train", "samples": 2000, "reference": "abc", "reference_images": 1797,
    "flipped": True, "extractor": "toy", "extractor_weights": "0123456789abcdef", "resize": "none",
    "command": "measure",
    "rows": [
        {"num_inference_steps": 1, "variant": None, "metrics": {"frechet": 12.34567, "kid": 0.5, "kid_std": 0.01}},
        {"num_inference_steps": 2, "variant": None, "metrics": {"frechet": 8.5, "kid": 0.125, "kid_std": 0.01}},
        {"num_inference_steps": 3, "variant": None, "metrics": {"frechet": 8.25, "kid": 0.12, "kid_std": 0.01}},
        {"num_inference_steps": 2, "variant": "ema5", "metrics": {"frechet": 9.25, "kid": 0.25, "kid_std": 0.02}},
    ],
}  # fmt: skip


def test_evaluations_become_a_table_and_those_of_one_and_two_steps_become_model_index(run):
    old = (run / "README.md").read_text()
    assert "## Evaluation" not in old
    (run / "evaluation.json").write_text(json.dumps(REPORT))
    card = make_card(run, "someone/my-digits", license="mit")
    assert "| 2 | ema5 | 9.25 | 0.25 ± 0.02 |" in card.text
    assert "| 3 | published | 8.25 | 0.12 ± 0.01 |" in card.text
    counted = "2,000 samples against 1,797 images of some digits, split train, each also mirrored (statistics abc)"
    assert counted in card.text
    assert "Features: toy (weights 0123456789ab, resize: none)" in card.text
    again = ModelCard(card.content)
    figures = {result.metric_name: result.metric_value for result in again.data.eval_results}
    one, two = {"frechet, 1 step": 12.35, "kid, 1 step": 0.5}, {"frechet, 2 steps": 8.5, "kid, 2 steps": 0.125}
    assert figures == one | two, "neither other averages nor further steps"
    known = {"samples": 2000, "extractor": "toy", "extractor_weights": "0123456789abcdef", "reference": "abc"}
    assert all(result.dataset_args == known for result in again.data.eval_results)
    assert again.data.license == "mit"
    assert mistakes(card.content) == []
    assert "| 2 | ema5 | 9.25 |" in merge(old, card.content), "an evaluation made later is not shown"
    write_card(run)
    once = (run / "README.md").read_text()
    write_card(run)
    assert (run / "README.md").read_text() == once


def test_settings_of_the_method_and_its_papers_are_in_the_card_and_a_damaged_one_is_not_renewed(run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    block = {"s0": 10, "s1": 40, "consistency": "ect"}
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "loss": "act", "objective": block}, sort_keys=False))
    card = make_card(run, "someone/new").content
    for text in ("| method's settings | s0 10, s1 40, consistency ect |", "ACT-Diffusion", "Consistency Models Made"):
        assert text in card
    (run / "README.md").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot be renewed: .* must be text in UTF-8"):
        write_card(run)
    assert (run / "README.md").read_bytes() == b"\xff"


@pytest.mark.parametrize(
    ("name", "written"), [("digits", "The weights are not in this repository."), ("fashion32", "")]
)
def test_the_card_of_a_committed_model_is_what_its_results_make(name, written):
    """But for one paragraph that was written by hand."""
    stored = ROOT / "model_cards" / name
    text = (stored / "README.md").read_text()
    made = re.sub(rf"{re.escape(written)}[^\n]*\n\n", "", text, count=1) if written else text
    assert make_card(stored, name).content == made
    assert (made == text) == (not written)
    assert mistakes(text) == []
    if (stored / "pipeline.py").is_file():  # saved with the weights
        assert (stored / "pipeline.py").read_text() == PIPELINE.read_text()
    if (stored / "demo.json").is_file():
        report = json.loads((stored / "demo.json").read_text())
        rows = json.loads((stored / "evaluation.json").read_text())["rows"]
        assert [row["metrics"]["frechet"] for row in rows] == [report["frechet_1"], report["frechet_2"]]


def test_what_is_untouched_is_renewed_and_what_was_edited_survives(digits):
    old = make_card(digits, "someone/old").content
    new = make_card(digits, "someone/new", license="mit").content
    untouched = merge(old, new)
    assert "someone/new" in untouched
    assert "someone/old" not in untouched
    assert merge(untouched, new) == untouched
    edited = old.replace("Nothing filters its", "We filter nothing of its").replace("# old", "# My digits\n\nHello.")
    edited = edited.replace("license: cc-by-4.0", "license: cc0-1.0")
    edited = re.sub(r"<!-- diffusers-ict:citation.*?<!-- /diffusers-ict -->", "None needed.", edited, flags=re.S)
    merged = merge(edited, new)
    for text in ("We filter nothing of its", "# My digits\n\nHello.", "None needed.", "someone/new"):
        assert text in merged, text
    assert "Improved Techniques" not in merged
    assert ModelCard(merged).data.license == "cc0-1.0"


def test_marks_without_an_end_are_text_and_take_no_time(digits):
    fresh = make_card(digits, "someone/new").content
    marks = "<!-- diffusers-ict:about 0123456789ab -->\n" * 20_000  # minutes, if each is sought an end
    assert marks in merge(f"{fresh}\n{marks}", fresh)
    nested = "<!-- diffusers-ict:a -->\n<!-- diffusers-ict:b -->\nx<!-- /diffusers-ict -->\nrest<!-- /diffusers-ict -->"
    assert sealed(nested).endswith("rest<!-- /diffusers-ict -->")
    assert sealed(nested).count("-->") == nested.count("-->")


def test_a_licence_that_is_given_replaces_the_one_of_the_card(run):
    card = run / "README.md"
    edited = card.read_text().replace("license: cc-by-4.0", "license: other\nlicense_name: mine\nlicense_link: LICENSE")
    card.write_text(edited.replace("# my-digits", "# My digits"))
    assert ModelCard(renewed_card(run)).data.license == "other"
    assert ModelCard(renewed_card(run, license="other")).data.license_name == "mine"
    renewed = ModelCard(renewed_card(run, license="mit"))
    assert renewed.data.license == "mit"
    assert not {"license_name", "license_link"} & set(renewed.data.to_dict())
    assert "# My digits" in renewed.text


def test_a_card_written_by_hand_is_kept_whole_and_added_to(digits):
    hand = "---\nlicense: mit\n---\n# Mine\n\nAll by hand.\n"
    merged = merge(hand, make_card(digits, "someone/new").content)
    assert "# Mine\n\nAll by hand." in merged
    assert "DiffusionPipeline.from_pretrained" in merged
    assert (ModelCard(merged).data.license, ModelCard(merged).data.library_name) == ("mit", "diffusers")
