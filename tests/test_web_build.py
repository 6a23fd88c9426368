"""The folder of a page, the program that serves it, and the Space that publishing makes of it."""

import _thread
import json
import os
import shutil
import signal
import tempfile
import threading
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from conftest import ROOT, files_of
from exported import export_once, make_pipeline
from hub_client import NAME, TOKEN
from huggingface_hub import SpaceCard
from npm_stand_in import CONTENTS, install

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import demo
from diffusers_ict.errors import UserError
from diffusers_ict.hub.card import make_card, merge
from diffusers_ict.web import build, runtime
from diffusers_ict.web.build import build_page
from diffusers_ict.web.onnx import Exported

# huggingface_hub sends large files in a way that its transport deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PAGE = ROOT / "src" / "diffusers_ict" / "web" / "page"
SPACE = f"spaces/{NAME}-demo"
CARD = "---\nlicense: cc-by-4.0\n---\n"


@pytest.fixture
def model(tmp_path) -> Path:
    """A class-conditional model with a name for each class but one, and a card."""
    pipeline = make_pipeline("conditional")
    pipeline.id2label = {0: "small", 1: "middle", 3: "huge"}
    pipeline.save_pretrained(tmp_path / "my-model")
    (tmp_path / "my-model" / "README.md").write_text(CARD)
    return tmp_path / "my-model"


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Another runtime and another ONNX file, which cost no time; the file tells what it was made with."""
    install(monkeypatch, tmp_path)

    def make(pipeline, dtype, name):
        return Exported(f"{dtype} {name} {pipeline.unet.config.num_class_embeds}".encode(), 1e-7)

    monkeypatch.setattr(build, "make_onnx", make)


def test_a_page_is_its_files_the_runtime_and_the_model(model, tmp_path, monkeypatch, tmp_path_factory):
    install(monkeypatch, tmp_path)
    exported = export_once("conditional", tmp_path_factory)
    monkeypatch.setattr(build, "make_onnx", lambda *args: exported)
    build_page(str(model), tmp_path / "page")
    written = files_of(tmp_path / "page")
    for name, content in files_of(PAGE).items():
        assert written.pop(name) == content, name
    for name in runtime.FILES:
        assert written.pop(f"runtime/{name}") == CONTENTS[f"package/dist/{name}"]
    assert written.keys() == {"model.onnx", "model.json", "check.bin"}

    described = json.loads(written["model.json"])
    expected = {"title": "my-model", "repository": None, "license": "cc-by-4.0", "resolution": 8, "channels": 1}
    expected |= {"num_classes": 4, "class_names": ["small", "middle", "2", "huge"], "sigma_min": 0.002, "sigma_max": 80}
    expected |= {"method": {"name": "Consistency Models", "paper": "https://arxiv.org/abs/2303.01469"}}
    expected |= {"weights": "fp32", "webgpu": False, "check": {"file": "check.bin", "sigma": 80, "class_label": 0}}
    assert described | expected == described

    x, stored = np.frombuffer(written["check.bin"], "<f4").reshape(2, 1, 1, 8, 8)
    pipeline = ConsistencyPipeline.from_pretrained(model)
    latents = torch.from_numpy(x / 80)
    drawn = pipeline(1, 0, latents=latents, output_type="latent").images.numpy()
    assert np.abs(drawn - stored).max() < 1e-4
    session = onnxruntime.InferenceSession(written["model.onnx"], providers=["CPUExecutionProvider"])
    inputs = {"x": x, "sigma": np.float32([80]), "class_labels": np.int64([0])}
    assert np.abs(session.run(None, inputs)[0].clip(-1, 1) - stored).max() < 1e-5


def test_a_page_of_a_hub_model_links_to_it_and_may_offer_webgpu(stand_ins, model, tmp_path):
    build_page(str(model), tmp_path / "page", dtype="fp16", title="Mine", hub_model_id=NAME, webgpu=True)
    written = files_of(tmp_path / "page")
    expected = {"title": "Mine", "repository": NAME, "weights": "fp16", "webgpu": True}
    assert json.loads(written["model.json"]).items() >= expected.items()
    assert written["model.onnx"] == b"fp16 Mine 4"
    assert {f"runtime/{name}" for name in runtime.WEBGPU_FILES} <= written.keys()


@pytest.mark.parametrize(
    ("part", "odd", "message"),
    [
        ("unet", {"sample_size": [8, 16]}, "the page shows square images of 1, 3 or 4 channels"),
        ("scheduler", {"clip_denoised": False}, "the page draws with clip_denoised true and s_noise 1"),
        ("scheduler", {"s_noise": 1.1}, "the page draws with clip_denoised true and s_noise 1"),
    ],
)
def test_models_that_the_page_cannot_show_or_follow_are_refused(part, odd, message, stand_ins, tmp_path):
    pipeline = make_pipeline("unconditional")
    getattr(pipeline, part).register_to_config(**odd)
    pipeline.save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match=message):
        build_page(str(tmp_path / "odd"), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_demo_serves_the_page_until_ctrl_c(stand_ins, model, tmp_path, capsys, monkeypatch):
    found = {}

    def visit(address: str) -> None:
        def fetch() -> None:
            try:
                for name in ("", "model.json", "runtime/LICENSE"):
                    with urllib.request.urlopen(address + name, timeout=30) as answer:
                        found[name] = answer.read()
            finally:  # else the server would be waited for without end
                _thread.interrupt_main()

        threading.Thread(target=fetch).start()

    monkeypatch.setattr(webbrowser, "open", visit)
    assert demo.main([str(model), "--output_dir", str(tmp_path / "page"), "--open"]) == 0
    said = capsys.readouterr().out
    assert "differs from the pipeline by at most 1e-07" in said
    assert "Serving at http://127.0.0.1:" in said
    assert found[""] == (PAGE / "index.html").read_bytes()
    assert json.loads(found["model.json"])["title"] == "my-model"
    assert (tmp_path / "page" / "index.html").is_file(), "a folder that was named is kept"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_demo_as_ctrl_c_does_and_what_is_ignored_stays_so(stand_ins, model, tmp_path, monkeypatch, name):
    number = getattr(signal, name)
    left: list = []

    def visit(address: str) -> None:
        def end() -> None:
            with urllib.request.urlopen(address, timeout=30):
                left.append([path.name for path in tmp_path.glob("demo-*/index.html")])
            os.kill(os.getpid(), number)

        threading.Thread(target=end).start()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(webbrowser, "open", visit)
    before = signal.getsignal(number)
    assert demo.main([str(model), "--open"]) == 0
    assert signal.getsignal(number) == before
    assert left == [["index.html"]]
    assert not list(tmp_path.glob("demo-*"))
    signal.signal(number, signal.SIG_IGN)
    try:
        with demo.ended_as_by_ctrl_c():
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_demo_serves_nothing_else_of_the_folder_and_writes_nowhere_else(
    stand_ins, model, tmp_path, monkeypatch, capsys
):
    found = []
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "private.txt").write_text("secret")

    def visit(address: str) -> None:
        def fetch() -> None:
            for name in ("private.txt", "model.json"):
                try:
                    with urllib.request.urlopen(address + name, timeout=30) as answer:
                        found.append(answer.status)
                except urllib.error.HTTPError as error:
                    found.append(error.code)
                    error.close()
            _thread.interrupt_main()

        threading.Thread(target=fetch).start()

    monkeypatch.setattr(webbrowser, "open", visit)
    assert demo.main([str(model), "--output_dir", str(tmp_path / "page"), "--open"]) == 0
    assert found == [404, 200]
    shutil.rmtree(tmp_path / "page" / "runtime")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "page" / "runtime").symlink_to(tmp_path / "elsewhere")
    assert demo.main([str(model), "--output_dir", str(tmp_path / "page")]) == 2
    assert "runtime must not be a link that leads out of the page's folder" in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_page_names_the_method_of_the_run(stand_ins, run, tmp_path):
    for changes, name in (({}, "iCT"), ({"loss": "ect"}, "ECT"), ({"loss": "new"}, "Consistency Models")):
        recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | changes
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        build_page(str(run), tmp_path / "page")
        assert json.loads((tmp_path / "page" / "model.json").read_text())["method"]["name"] == name


def test_odd_names_are_harmless_in_the_page(stand_ins, model, tmp_path):
    odd = tmp_path / "evil\n\u202emodel"
    model.rename(odd)
    names = {"0": "\x1b[31mred", "1": "long " * 1000, "2": "two\nlines"}
    (odd / "labels.json").write_text(json.dumps({"id2label": names}))
    build_page(str(odd), tmp_path / "page")
    described = json.loads((tmp_path / "page" / "model.json").read_text())
    assert described["title"] == r"evil\n\u202emodel"
    assert described["class_names"][0::2] == [r"\x1b[31mred", r"two\nlines"]
    assert len(described["class_names"][1]) == 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "diffusers-ict demo: --port 70000 cannot be used"),
        (["--weights", "int4"], "invalid choice: 'int4'"),
        ([], "diffusers-ict demo: onnxruntime-web 1.30.0 cannot be fetched from"),
    ],
)
def test_demo_tells_what_it_lacks_in_one_sentence(model, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr(runtime, "cached_assets_path", lambda *names: tmp_path / "cache")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")  # where nobody listens
    assert demo.main([str(model), "--output_dir", str(tmp_path / "page"), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "page").exists()


def test_publishing_with_a_space_pushes_the_page_and_links_both_ways(stand_ins, hub, run, published, tmp_path, capsys):
    assert published(run, "--space") == 0, capsys.readouterr().err
    assert f"/spaces/{NAME}-demo\n" in capsys.readouterr().out
    build_page(str(run), tmp_path / "page", title="my-digits", hub_model_id=NAME)
    pushed = dict(hub.repositories[SPACE].files)
    front = SpaceCard(pushed.pop("README.md").decode())
    assert pushed == files_of(tmp_path / "page")

    said = front.data.to_dict()
    assert (said["sdk"], said["models"], said["license"]) == ("static", [NAME], "cc-by-4.0")
    assert said["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    assert said["custom_headers"]["cross-origin-opener-policy"] == "same-origin"
    assert f"(https://huggingface.co/{NAME})" in front.text
    link = f"(https://huggingface.co/spaces/{NAME}-demo)"
    assert link in hub.repositories[NAME].files["README.md"].decode()
    assert link in (run / "README.md").read_text()
    sent = [*hub.repositories[SPACE].files.values(), *hub.repositories[NAME].files.values(), *hub.bodies]
    for secret in (TOKEN, str(tmp_path), str(ROOT), "/space-", "/publish-"):
        assert not [content for content in sent if secret.encode() in content], secret

    assert published(run) == 0
    assert published(run, "--space") == 0
    assert link in hub.repositories[NAME].files["README.md"].decode(), "the link stays without the flag"
    assert [len(hub.repositories[name].commits) for name in (NAME, SPACE)] == [1, 1], "nothing had changed"


def test_a_card_on_the_hub_that_lacks_the_link_gets_it_once_and_the_rest_stays(stand_ins, hub, run, published):
    assert published(run) == 0
    assert SPACE not in hub.repositories
    plain = hub.repositories[NAME].files["README.md"].decode()
    assert "huggingface.co/spaces" not in plain
    edited = plain.replace("## Limits", "## Limits\n\nNot for doctors.")
    hub.repositories[NAME].files["README.md"] = edited.encode()
    assert published(run, "--space", "--hub_private_repo") == 0
    linked = hub.repositories[NAME].files["README.md"].decode()
    assert "Not for doctors." in linked
    assert linked.index("# my-digits") < linked.index(f"/spaces/{NAME}-demo") < linked.index("diffusers-ict:about")
    assert hub.repositories[SPACE].private
    again = merge(linked, make_card(run, NAME, space_id="someone/other").content)
    assert f"spaces/{NAME}-demo" not in again
    assert again.count("https://huggingface.co/spaces/someone/other") == 1
    assert merge(again, plain) == again


@pytest.mark.parametrize(
    ("name", "message"),
    [(NAME, "must agree"), (f"someone/{'x' * 93}", "--hub_model_id must have the form")],
    ids=["a wrong export", "a name too long for -demo"],
)
def test_nothing_is_sent_where_there_can_be_no_space(
    stand_ins, hub, run, published, capsys, monkeypatch, name, message
):
    monkeypatch.setattr(build, "make_onnx", Mock(side_effect=UserError("the ONNX file must agree")))
    before = (run / "README.md").read_text()
    assert published(run, "--space", "--hub_model_id", name) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not hub.requests
    assert (run / "README.md").read_text() == before


@pytest.mark.slow
def test_what_was_pushed_draws_in_a_browser(look, hub, run, published, tmp_path, capsys):
    try:
        runtime.runtime_archive()
    except UserError as error:
        pytest.skip(str(error))
    assert published(run, "--space") == 0, capsys.readouterr().err
    for name, content in hub.repositories[SPACE].files.items():
        file = tmp_path / "space" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    view = look(tmp_path / "space")
    view.choose("steps", 1)
    view.drawn("samples")
    noise = torch.tensor(view.script("[...samples.noises(0)[0]]")).reshape(1, 1, 8, 8)
    pipeline = ConsistencyPipeline.from_pretrained(run)
    image = pipeline(1, 0, latents=noise, output_type="np").images[0]
    drawn = view.pixels("#grid canvas")[0]
    assert np.abs(drawn - (255 * image).round()).max() <= 2
    assert drawn.std() > 5, "a constant image proves nothing"
    assert view.text("title") == "my-digits"
