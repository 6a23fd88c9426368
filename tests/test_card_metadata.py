"""What a model card says beside its text: what the Hub shows and lists, where the model and the package come from."""

import json
from email.message import Message

import pytest
import yaml
from conftest import ROOT
from hub_stand_in import mistakes
from huggingface_hub import ModelCard
from test_card import REPORT

from diffusers_ict.commands import convert
from diffusers_ict.hub.card import make_card, merge
from diffusers_ict.hub.metadata import origin_on_hub
from diffusers_ict.hub.provenance import code_address


def test_a_card_begins_with_samples_which_the_page_of_the_hub_shows_and_renews(run):
    (run / "evaluation.json").write_text(json.dumps(REPORT))
    old = make_card(run, "someone/my-digits")
    assert old.content.index("# my-digits") < old.content.index("![Samples") < old.content.index("A class-conditional")
    assert len(old.content.split("# my-digits")[0].splitlines()) < 60, "the title is not among the first lines"
    (shown,) = old.data.widget
    assert (run / shown["output"]["url"]).is_file()
    assert f"]({shown['output']['url']})" in old.text
    (run / "samples" / "step-0000099.png").write_bytes(b"later")
    fresh = make_card(run, "someone/my-digits").content
    assert ModelCard(merge(old.content, fresh)).data.widget[0]["output"]["url"] == "samples/step-0000099.png"
    own = old.content.replace(shown["output"]["url"], "pictures/best.png", 1)
    assert ModelCard(merge(own, fresh)).data.widget[0]["output"]["url"] == "pictures/best.png"
    for widget in ("widget: none\n", "widget:\n- text: a\n", "widget: [1]\n"):
        assert (
            yaml.safe_load(widget).items()
            <= ModelCard(merge(f"---\n{widget}---\n# Mine", fresh)).data.to_dict().items()
        )


def test_the_card_names_data_and_base_models_of_the_hub_and_no_files(run):
    path = run / "run.json"
    entries = json.loads(path.read_text())

    def card_of(**changed):
        path.write_text(json.dumps({**entries, **changed}))
        return make_card(run, "someone/new")

    assert not {"datasets", "base_model"} & card_of().data.to_dict().keys()
    named = card_of(dataset="someone/pets", dataset_on_hub=True, base_model="google/ddpm", base_model_on_hub=True)
    assert (named.data.datasets, named.data.base_model) == (["someone/pets"], "google/ddpm")
    assert mistakes(named.content) == []
    indirect = card_of(base_model="my-start", base_model_origin="google/ddpm")
    assert indirect.data.base_model == "google/ddpm"
    row = "| started from | my-start, which came from [google/ddpm](https://huggingface.co/google/ddpm) |"
    assert row in indirect.text
    assert card_of(base_model="my-start").data.base_model is None


def test_the_origin_of_a_model_is_what_its_files_say(run, tmp_path):
    assert origin_on_hub(run) is None
    assert origin_on_hub(tmp_path) is None
    entries = json.loads((run / "run.json").read_text())
    for changed in ({"base_model": "a/b", "base_model_on_hub": True}, {"base_model": "x", "base_model_origin": "a/b"}):
        (run / "run.json").write_text(json.dumps({**entries, **changed}))
        assert origin_on_hub(run) == "a/b"
    assert convert.main([str(run), str(tmp_path / "converted")]) == 0
    assert origin_on_hub(tmp_path / "converted") is None
    converted = tmp_path / "converted" / "conversion.json"
    converted.write_text(json.dumps({**json.loads(converted.read_text()), "source": "c/d", "source_on_hub": True}))
    assert origin_on_hub(tmp_path / "converted") == "c/d"


def test_the_card_says_where_the_package_is(run, monkeypatch):
    assert "pip install .                  # diffusers-ict, in a clone" in make_card(run, "someone/new").text
    monkeypatch.setattr("diffusers_ict.hub.card.code_address", lambda: "https://example.org/ict")
    text = make_card(run, "someone/new").text
    assert "by\n[diffusers-ict](https://example.org/ict). It draws" in text
    assert "\npip install git+https://example.org/ict    # diffusers-ict, which is not on PyPI yet\n" in text
    assert "clone" not in text


def test_the_address_of_the_package_is_that_of_its_metadata(monkeypatch):
    tomllib = pytest.importorskip("tomllib", reason="a module of Python 3.11")
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    code_address.cache_clear()
    assert code_address() == urls.get("Repository")
    message = Message()
    message["Project-URL"] = "Documentation, https://example.org/docs"
    message["Project-URL"] = "Repository, https://example.org/ict"
    monkeypatch.setattr("importlib.metadata.metadata", lambda name: message)
    code_address.cache_clear()
    assert code_address() == "https://example.org/ict"
    code_address.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(39.6, "40 s"), (59.7, "1 min"), (89.1, "1 min 29 s"), (3599.6, "1 h"), (4836.9, "1 h 20 min")],
)
def test_the_time_of_a_run_has_no_units_of_nothing(run, seconds, told):
    entries = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**entries, "train_seconds": seconds}))
    assert f"| time | {told} |" in make_card(run, "someone/new").text
