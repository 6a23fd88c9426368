"""Publishing, with the real client against a Hub on this machine, each push in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_npz
from hub_stand_in import Hub, serve
from test_hub import fresh_process

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import publish as publish_command
from diffusers_ict.commands import train as train_ict
from diffusers_ict.errors import UserError
from diffusers_ict.hub import publish
from diffusers_ict.hub.licenses import check_license
from diffusers_ict.hub.publish import BackgroundPublisher, PublishError, check_repo_id

SCRIPTS = ROOT / "train_scripts"
NAME = "someone/my-digits"
NAMES = ["small", "middle", "large", "huge"]
TOKEN = "hf_planted0123456789abcdef"
HOST = "planted-host-name"
# Run by every interpreter that finds it on its path: the machine then has that name.
NAME_THE_HOST = f"""
import os, socket
kernel = os.uname()
os.uname = lambda: os.uname_result((kernel[0], "{HOST}", *kernel[2:]))
socket.gethostname = lambda: "{HOST}"
"""


def flags(base: Path) -> list[str]:
    own = ["--dataset_name", base / "data.npz", "--class_conditional", "--max_train_steps", 8, "--train_batch_size", 4]
    more = ["--ema_decays", 0.9, 0.5, "--num_validation_images", 4, "--output_dir", base / "run"]
    return [str(flag) for flag in [*own, *more]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("published")
    write_npz(base / "data.npz")
    assert train_ict.main(flags(base)) == 0
    pipeline = ConsistencyPipeline.from_pretrained(base / "run")
    pipeline.id2label = dict(enumerate(NAMES))
    pipeline.save_pretrained(base / "run")
    return base


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A finished run whose classes have names, and its data beside it; publishing renews the card in it."""
    return shutil.copytree(trained, tmp_path / "published") / "run"


@pytest.fixture
def hub():
    with serve(Hub()) as hub:
        yield hub


def client(hub: Hub, cache: Path, *arguments, **more) -> subprocess.CompletedProcess:
    """A Python process that talks to the stand-in; `more`: variables of its environment."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **more}
    environment |= {"HF_TOKEN": TOKEN, "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
    environment.pop("HF_HUB_OFFLINE")
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def push(hub: Hub, folder: Path, cache: Path, *more) -> subprocess.CompletedProcess:
    return client(hub, cache, SCRIPTS / "publish.py", folder, "--hub_model_id", NAME, *more)


def test_push_push_again_and_private(hub, folder, tmp_path):
    done = push(hub, folder, tmp_path, "--hub_private_repo", "--license", "mit")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories[NAME]
    assert repository.private
    assert len(repository.commits) == 1
    names = set(repository.files)
    assert {"README.md", "model_index.json", "labels.json", "recipe.yaml", "run.json", "training.png"} <= names
    assert b"0 `small`, 1 `middle`, 2 `large`, 3 `huge`" in repository.files["README.md"]
    assert {"unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.ema5.safetensors"} <= names
    assert not [name for name in names if "checkpoint" in name or "optimizer" in name]
    local = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert repository.files["unet/diffusion_pytorch_model.safetensors"] == local, "large files go through LFS"
    assert any("/lfs/objects/batch" in request for request in hub.requests)

    assert push(hub, folder, tmp_path, "--license", "mit").returncode == 0
    assert len(repository.commits) == 1, "an unchanged push made a commit"


def test_a_card_edited_on_the_hub_survives_the_next_push(hub, folder, tmp_path):
    assert push(hub, folder, tmp_path).returncode == 0
    repository = hub.repositories[NAME]
    edited = repository.files["README.md"].decode().replace("## Limits", "## Limits\n\nNot for medical use.")
    repository.files["README.md"] = edited.encode()
    assert push(hub, folder, tmp_path / "elsewhere").returncode == 0
    assert b"Not for medical use." in repository.files["README.md"]


@pytest.mark.parametrize(
    ("status", "message"), [(401, "the token is missing or not valid"), (403, "may not write there")]
)
def test_refusals_are_told_once_in_one_sentence_and_not_tried_again(hub, folder, tmp_path, status, message):
    hub.failures = [("/api/repos/create", status)]
    done = push(hub, folder, tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert hub.requests.count("POST /api/repos/create") == 1


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("/preupload/", 503),
        ("/validate-yaml", 502),
        ("/lfs/objects/batch", 409),
        ("/storage/", 409),
        ("/commit/", 409),
        ("/commit/", 412),
        ("/commit/", 500),
    ],
)
def test_passing_failures_anywhere_are_outlived(folder, hub, tmp_path, where, status):
    hub.failures = [(where, status)]
    done = push(hub, folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not hub.failures, "the failure was not met"
    assert len(hub.repositories[NAME].commits) == 1
    assert len([name for name in hub.repositories[NAME].files if name.endswith(".safetensors")]) == 2


def test_an_interrupted_upload_is_taken_up_without_sending_large_files_again(hub, folder, tmp_path):
    hub.failures = [("/commit/", 403)]
    assert push(hub, folder, tmp_path).returncode == 2
    sent = len([request for request in hub.requests if request.startswith("PUT /storage/")])
    assert sent >= 2
    assert push(hub, folder, tmp_path).returncode == 0
    assert len([request for request in hub.requests if request.startswith("PUT /storage/")]) == sent


def test_a_converted_model_is_published_with_a_card_that_names_the_repository(hub, tmp_path):
    import guided_unet

    from diffusers_ict.commands import convert

    torch.save(guided_unet.make((32, 64), (False, True), 1), tmp_path / "model.pt")
    own = ["--resolution", "8", "--attention_head_dim", "8"]
    assert convert.main([str(tmp_path / "model.pt"), str(tmp_path / "model"), *own]) == 0
    done = push(hub, tmp_path / "model", tmp_path / "cache", "--license", "mit")
    assert done.returncode == 0, done.stderr
    files = hub.repositories[NAME].files
    assert b"license: mit" in files["README.md"]
    assert f'from_pretrained("{NAME}")'.encode() in files["README.md"]
    assert "conversion.json" in files
    assert b"converted from a checkpoint of openai/consistency_models" in files["README.md"]
    assert str(tmp_path).encode() not in b"".join(files.values())


@pytest.mark.slow
def test_every_program_takes_a_repository_by_its_id(hub, folder, tmp_path):
    assert push(hub, folder, tmp_path / "mine", "--license", "mit").returncode == 0
    real = ["--dataset_name", folder.parent / "data.npz"]
    short = ["--max_train_steps", 8, "--train_batch_size", 4, "--num_validation_images", 2]
    figures = ["--extractor", "pixels", "--metrics", "kid", "--num_samples", 8, "--cache_dir", tmp_path / "work"]
    start = ["--pretrained_model_name_or_path", NAME, "--class_conditional"]
    calls = [
        ["check", NAME],
        ["evaluate", NAME, *real, *figures, "--output_dir", tmp_path / "out"],
        ["convert", NAME, tmp_path / "converted"],
        ["train", *start, *real, *short, "--output_dir", tmp_path / "tuned"],
    ]
    code = "import json, sys; from diffusers_ict.commands.main import main\nfor w in json.loads(sys.argv[1]): "
    code += "assert main(w) == 0, w"
    done = client(hub, tmp_path / "cache", "-c", code, json.dumps([list(map(str, words)) for words in calls]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ema5, steps 2: kid" in done.stdout
    assert f"base_model: {NAME}" in (tmp_path / "converted" / "README.md").read_text()
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "converted").rglob("*.json"))
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert f"base_model: {NAME}" in card
    assert f"| started from | {NAME} |\n| optimizer steps" in card


def test_a_hub_that_cannot_be_reached_is_told_in_one_sentence(folder, tmp_path):
    nobody = Hub(address="http://127.0.0.1:9")
    done = push(nobody, folder, tmp_path, "--attempts", 1)
    assert done.returncode == 2
    assert "the Hub cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_card_that_the_hub_refuses_is_told_in_one_sentence(hub, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    card = (model / "README.md").read_text().replace("library_name:", "datasets: [not a dataset]\nlibrary_name:")
    (model / "README.md").write_text(card)
    done = push(hub, model, tmp_path)
    assert done.returncode == 2
    assert 'the Hub refuses the card: "datasets" must be a list of dataset ids' in done.stderr
    assert done.stderr.count("\n") == 1
    assert not hub.repositories[NAME].commits


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--hub_model_id", "some one/my digits"], "--hub_model_id must have the form user/name or organisation/name"),
        (["--hub_model_id", "my-digits"], "--hub_model_id must have the form user/name or organisation/name"),
        (["--license", "nonsense"], "--license must be a licence identifier of the Hub"),
        (["--license", "CC-BY-4"], "such as cc-by-4.0"),
    ],
)
def test_a_name_or_a_licence_that_the_hub_does_not_take_is_refused_before_anything_is_sent(
    hub, folder, capsys, monkeypatch, own, message
):
    monkeypatch.setattr(publish, "stage", None)  # nothing else happens before
    assert publish_command.main([str(folder), "--hub_model_id", NAME, *own]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_names_of_repositories_are_checked():
    for name in ("someone/my-digits", "Some_one/my.digits"):
        check_repo_id(name)
    for name in (None, "", "digits", "a/b/c", "someone/", "/digits", "someone/my--digits", "someone/x.git", "é/b"):
        with pytest.raises(UserError, match="`hub_model_id` must have the form user/name"):
            check_repo_id(name)


def test_licences_are_checked():
    for name in ("mit", "cc-by-4.0", "openrail++", "other"):
        check_license(name)
    for name in ("nonsense", "", "MIT"):
        with pytest.raises(UserError, match="`license` must be a licence identifier of the Hub"):
            check_license(name)


def test_a_licence_that_is_given_wins_over_the_cards_here_and_on_the_hub(hub, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    card = model / "README.md"
    card.write_text(card.read_text().replace("library_name:", "license: cc-by-4.0\nlibrary_name:"))
    assert push(hub, model, tmp_path / "cache").returncode == 0
    repository = hub.repositories[NAME]
    assert b"license: cc-by-4.0" in repository.files["README.md"]
    done = push(hub, model, tmp_path / "cache", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert b"license: mit" in repository.files["README.md"]
    assert "license: mit" in card.read_text()
    assert len(repository.commits) == 2
    assert push(hub, model, tmp_path / "cache").returncode == 0
    assert b"license: mit" in repository.files["README.md"], "a licence that is not given changes nothing"
    assert len(repository.commits) == 2


def test_a_folder_without_a_run_is_refused(hub, tmp_path):
    done = push(hub, tmp_path, tmp_path)
    assert done.returncode == 2
    assert "must be the output folder of a training run or a conversion; it has no model_index.json" in done.stderr


@pytest.mark.slow
def test_training_publishes_in_the_background_and_leaks_nothing(hub, tmp_path):
    write_npz(tmp_path / "data.npz")
    own = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", "checkpoint", "--checkpointing_steps", 2]
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "sitecustomize.py").write_text(NAME_THE_HOST)
    named = {"PYTHONPATH": str(tmp_path / "named")}
    shown = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.node())"],
        env={**os.environ, **named},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == HOST
    done = client(
        hub, tmp_path / "cache", SCRIPTS / "train_ict.py", *flags(tmp_path), *own, "--hub_token", TOKEN, **named
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Published as {NAME}." in done.stdout
    repository = hub.repositories[NAME]
    assert len(repository.commits) >= 2
    assert b"8 of 4 images" in repository.files["README.md"]
    sent = [*repository.files.values(), *hub.bodies]
    written = [p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()]
    for content in [*sent, *written]:
        for secret in (TOKEN, str(tmp_path), str(Path.home()) + "/", str(ROOT), HOST):
            assert secret.encode() not in content, secret
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("where", "status"), [("/api/repos/create", 403), ("/commit/", 401)])
def test_a_failing_hub_does_not_stop_training_and_publishing_is_finished_later(hub, tmp_path, where, status):
    write_npz(tmp_path / "data.npz")
    hub.failures = [(where, status)] * 20
    own = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", "checkpoint", "--checkpointing_steps", 2]
    done = client(hub, tmp_path / "cache", SCRIPTS / "train_ict.py", *flags(tmp_path), *own)
    assert done.returncode == 0
    assert len(re.findall("was not published", done.stderr)) == 1
    assert "finish with diffusers-ict publish" in done.stderr
    hub.failures = []
    assert push(hub, tmp_path / "run", tmp_path / "cache").returncode == 0


def test_the_background_publisher_keeps_the_newest_and_never_blocks(tmp_path):
    import threading

    gate, pushed = threading.Event(), []

    def slow(staged: Path) -> str:
        gate.wait(10)
        pushed.append(staged.name)
        return ""

    publisher = BackgroundPublisher(slow)
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
        publisher.submit(tmp_path / name)
        if name == "1":
            while publisher.waiting is not None:
                pass
    gate.set()
    assert publisher.finish() is None
    assert pushed == ["1", "3"]
    assert not list(tmp_path.iterdir()), "staged folders are left"


def test_backoff_doubles_and_ends(monkeypatch):
    pauses = []
    monkeypatch.setattr(publish.time, "sleep", pauses.append)

    def unreachable():
        raise OSError("no route")

    with pytest.raises(PublishError, match="the Hub cannot be reached, 4 times"):
        publish._persist(unreachable, NAME, attempts=4, pause=1.0)
    assert pauses == [1.0, 2.0, 4.0]


REMOTE = {"custom_pipeline": NAME, "trust_remote_code": True}
LOADS = [({}, {"num_inference_steps": 2}), (REMOTE, {"num_inference_steps": 2}), (REMOTE, {"sigmas": [80.0, 3.3, 0.5]})]
LOAD = """
import importlib.util, json, logging, numpy, sys, torch
from diffusers import DiffusionPipeline
assert importlib.util.find_spec("diffusers_ict") is None, "it was to be tested without us"
said = []
listener = logging.Handler()
listener.emit = lambda record: said.append(record.getMessage())
logging.getLogger("diffusers").addHandler(listener)
for number, (options, call) in enumerate(json.loads(sys.argv[1])):
    pipe = DiffusionPipeline.from_pretrained("someone/my-digits", **options)
    assert options or not said, said
    generator = torch.Generator().manual_seed(0)
    images = pipe(2, class_labels=[0, 1], generator=generator, output_type="np", **call).images
    numpy.save(f"{sys.argv[2]}/{number}.npy", images)
"""


def test_what_was_pushed_loads_by_its_id_where_we_are_not_installed(hub, folder, tmp_path, python_without_us):
    assert push(hub, folder, tmp_path).returncode == 0
    own = {"address": hub.address, "home": tmp_path / "c"}
    fresh_process(python_without_us, LOAD, json.dumps(LOADS), str(tmp_path), **own)
    pipeline = ConsistencyPipeline.from_pretrained(folder)
    for number, (_, call) in enumerate(LOADS):
        generator = torch.Generator().manual_seed(0)
        expected = pipeline(2, [0, 1], generator=generator, output_type="np", **call).images
        assert np.abs(np.load(tmp_path / f"{number}.npy") - expected).max() == 0.0


LABELS = """
import sys
from diffusers_ict import ConsistencyPipeline
for options in ({}, {"cache_dir": sys.argv[1], "revision": "main", "token": "hf_some"}, {"cache_dir": sys.argv[1]}):
    pipeline = ConsistencyPipeline.from_pretrained("someone/my-digits", **options)
    assert list(pipeline.id2label.values()) == ["small", "middle", "large", "huge"], pipeline.id2label
pipeline(1, class_labels="large")
assert ConsistencyPipeline.from_pretrained("someone/unnamed").id2label is None
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
assert ConsistencyPipeline.from_pretrained("someone/my-digits").id2label[2] == "large"
assert ConsistencyPipeline.from_pretrained("someone/unnamed", local_files_only=True).id2label is None
"""


@pytest.mark.slow
def test_names_of_classes_are_read_from_the_hub_and_from_its_cache(hub, folder, tmp_path):
    hub.add_folder(NAME, folder)
    hub.add_folder("someone/unnamed", folder)
    del hub.repositories["someone/unnamed"].files["labels.json"]
    done = client(hub, tmp_path / "home", "-c", LABELS, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").rglob("labels.json"))
