"""Publishing, with the real client against a Hub on this machine."""

import json
import os
import shutil
import signal
from pathlib import Path

import guided_unet
import pytest
import torch
from conftest import ROOT
from hub_client import NAME, SCRIPTS, TOKEN, client, connect, digits_flags, push
from hub_stand_in import Fault

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import convert, train
from diffusers_ict.errors import UserError
from diffusers_ict.hub.publish import check_push
from diffusers_ict.hub.run_files import published_files

# huggingface_hub sends large files in a way that its transport deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
HOST = "planted-host-name"
# Run by every interpreter that finds it on its path: the machine then has that name.
NAME_THE_HOST = f"""
import os, socket
kernel = os.uname()
os.uname = lambda: os.uname_result((kernel[0], "{HOST}", *kernel[2:]))
socket.gethostname = lambda: "{HOST}"
open(__file__ + ".used", "w").close()
"""


def test_a_push_is_one_commit_and_none_where_nothing_has_changed(hub, named, tmp_path):
    for _ in range(2):
        done = push(hub, named, tmp_path, "--hub_private_repo", "--license", "mit")
        assert done.returncode == 0, done.stderr
    repository = hub.repositories[NAME]
    assert done.stdout == f"Published at {hub.address}/{NAME}\n  nothing has changed\n"
    assert repository.private
    assert len(repository.commits) == 1
    names = set(repository.files)
    assert {"README.md", "model_index.json", "labels.json", "recipe.yaml", "run.json", "training.png"} <= names
    assert {"unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.ema5.safetensors"} <= names
    assert b"0 `small`, 1 `middle`, 2 `large`, 3 `huge`" in repository.files["README.md"]
    assert not [name for name in names if "checkpoint" in name or "optimizer" in name]
    local = (named / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert repository.files["unet/diffusion_pytorch_model.safetensors"] == local, "large files go through LFS"
    assert any("/lfs/objects/batch" in request for request in hub.requests)


def test_publishing_says_which_files_were_added_and_changed_by_which_commit(hub, run, published, capsys):
    assert published(run) == 0
    repository = hub.repositories[NAME]
    added = sorted(repository.files)
    first = ", ".join(added[:6])
    commit = f"{hub.address}/{NAME}/commit/{repository.sha}"
    told = f"Published at {hub.address}/{NAME}\n  {len(added)} files ({first}, ...) added: {commit}\n"
    assert capsys.readouterr().out == told
    weights = run / "unet" / "diffusion_pytorch_model.safetensors"  # large, so that LFS keeps it
    weights.write_bytes(weights.read_bytes() + b"\0")
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + "# a remark\n")
    (run / "samples" / "another\n.png").write_bytes(b"png")
    (run / "labels.json").unlink(missing_ok=True)  # what is missing here stays there
    assert published(run) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    changes = r"1 file (samples/another\n.png) added and "
    changes += "2 files (recipe.yaml, unet/diffusion_pytorch_model.safetensors) changed"
    assert last == f"  {changes}: {hub.address}/{NAME}/commit/{repository.sha}"
    assert published(run) == 0
    assert capsys.readouterr().out.endswith("\n  nothing has changed\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_of_what_is_being_published(hub, run, tmp_path, number):
    """Sent while the page of a Space is made, to the copy of a run that goes on."""
    code = (
        "import os, sys; from diffusers_ict.commands import publish; from diffusers_ict.web import build\n"
        "def make(model, folder, license, repo_id):\n"
        "    (folder / 'model.onnx').write_bytes(b'0')\n"
        f"    os.kill(os.getpid(), {number:d})\n"
        "build.make_space = make; sys.exit(publish.main(sys.argv[1:]))"
    )
    own = ["--hub_model_id", NAME, "--space", "--remove_output_dir"]
    (tmp_path / "tmp").mkdir()
    done = client(hub, tmp_path / "cache", "-c", code, run, *own, TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == -number, done.stderr
    assert done.stderr == ""
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not run.exists()


def test_an_edited_card_is_kept_and_a_licence_that_is_given_wins_over_the_cards_here_and_there(
    hub, run, published, capsys
):
    assert published(run) == 0
    repository, card = hub.repositories[NAME], run / "README.md"
    edited = repository.files["README.md"].decode().replace("## Limits", "## Limits\n\nNot for medical use.")
    repository.files["README.md"] = edited.encode()
    for flags, license in (([], "cc-by-4.0"), (["--license", "mit"], "mit"), ([], "mit")):
        assert published(run, *flags) == 0
        assert b"Not for medical use." in repository.files["README.md"]
        assert f"license: {license}".encode() in repository.files["README.md"]
        assert f"license: {license}" in card.read_text()
    assert len(repository.commits) == 2, "without a change there is no commit"
    assert published(run, "--license", "nonsense") == 2
    assert 'the Hub refuses the card: - Error: "license" must be one of' in capsys.readouterr().err
    assert "license: mit" in card.read_text()


def test_a_card_that_is_edited_while_files_are_sent_is_merged_again(hub, run, published):
    assert published(run) == 0
    repository = hub.repositories[NAME]
    edited = repository.files["README.md"].replace(b"## Limits", b"## Limits\n\nNot for medical use.")
    hub.edited_meanwhile = edited
    assert published(run, "--license", "mit") == 0
    assert b"Not for medical use." in repository.files["README.md"]
    assert b"license: mit" in repository.files["README.md"]
    assert repository.commits[-2:] == ["Edit README.md", "Upload consistency model"]


@pytest.mark.parametrize("name", ["README.md", "samples/secret.png", "unet"])
def test_links_that_lead_out_of_the_folder_are_not_published(hub, run, published, tmp_path, capsys, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("a key")
    link = run / name
    shutil.rmtree(link, ignore_errors=True) if link.is_dir() else link.unlink(missing_ok=True)
    link.symlink_to(outside if name == "unet" else outside / "config.json")
    assert published(run) == 2
    assert f"is a link that leads out of {run}" in capsys.readouterr().err
    assert NAME not in hub.repositories
    link.unlink()
    (run / "samples" / "inside.png").symlink_to(run / "training.png")  # which is published anyway
    (outside / "config.json").unlink()
    assert "samples/inside.png" in published_files(run)


def test_a_converted_model_is_published_with_a_card_that_names_the_repository(hub, published, tmp_path):
    torch.save(guided_unet.make((32, 64), (False, True), 1), tmp_path / "model.pt")
    own = ["--resolution", "8", "--attention_head_dim", "8"]
    assert convert.main([str(tmp_path / "model.pt"), str(tmp_path / "model"), *own]) == 0
    assert published(tmp_path / "model", "--license", "mit") == 0
    files = hub.repositories[NAME].files
    assert "conversion.json" in files
    for text in (
        "license: mit",
        f'from_pretrained("{NAME}")',
        "converted from a checkpoint of openai/consistency_models",
    ):
        assert text.encode() in files["README.md"]
    assert str(tmp_path).encode() not in b"".join(files.values())


def test_names_that_no_repository_has_and_folders_without_a_model_are_refused(hub, published, tmp_path, capsys):
    for name in (None, "", "digits", "a/b/c", "someone/", "/digits", "someone/my--digits", "someone/x.git", "é/b"):
        with pytest.raises(UserError, match="`hub_model_id` must have the form user/name"):
            check_push(name, None)
    check_push("Some_one/my.digits", None)
    assert published(tmp_path) == 2
    assert "must be the output folder of a training run or a conversion" in capsys.readouterr().err
    assert not hub.requests


def test_a_licence_that_the_hub_refuses_is_told_before_a_run_begins(hub, tmp_path, monkeypatch, capsys):
    connect(monkeypatch, hub, tmp_path / "h")
    own = ["--push_to_hub", "--hub_model_id", NAME, "--license", "nonsense"]
    assert train.main([*digits_flags(tmp_path), *own]) == 2
    err = capsys.readouterr().err
    assert "--license must be a licence identifier of the Hub, got nonsense: the Hub refuses" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "my-digits").exists()
    check_push(NAME, "mit")
    assert hub.requests == ["POST /api/validate-yaml"] * 2, "nothing but a question"
    hub.fault = Fault("/api/validate-yaml", 500)
    with pytest.warns(UserWarning, match="the Hub was not asked whether it takes the licence mit: the Hub "):
        check_push(NAME, "mit")


@pytest.mark.slow
def test_every_program_takes_a_repository_by_its_id(hub, run, digits, tmp_path):
    hub.add_folder(NAME, run)
    real = ["--dataset_name", digits.parent / "data.npz"]
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
    assert "ema5" in done.stdout, "a row of the table of figures"
    assert f"base_model: {NAME}" in (tmp_path / "converted" / "README.md").read_text()
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "converted").rglob("*.json"))
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert f"base_model: {NAME}" in card
    assert f"| started from | {NAME} |" in card


@pytest.mark.slow
def test_training_publishes_in_the_background_and_leaks_nothing(hub, tmp_path):
    flags = [*digits_flags(tmp_path), "--push_to_hub", "--hub_model_id", NAME]
    flags += ["--hub_strategy", "every_save", "--checkpointing_steps", "2"]
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "sitecustomize.py").write_text(NAME_THE_HOST)
    named = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "named"), os.environ.get("PYTHONPATH", "")])}
    done = client(hub, tmp_path / "cache", SCRIPTS / "train_ict.py", *flags, **named)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "named" / "sitecustomize.py.used").exists()
    assert f"Published as {NAME}." in done.stdout
    repository = hub.repositories[NAME]
    assert len(repository.commits) >= 2
    assert b"8 of 4 images" in repository.files["README.md"]
    sent = [*repository.files.values(), *hub.bodies]
    written = [p.read_bytes() for p in (tmp_path / "my-digits").rglob("*") if p.is_file()]
    for content in [*sent, *written]:
        for secret in (TOKEN, str(tmp_path), str(Path.home()) + "/", str(ROOT), HOST):
            assert secret.encode() not in content, secret
    assert TOKEN not in done.stdout + done.stderr


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


@pytest.fixture
def named(run) -> Path:
    """A finished run whose classes have names."""
    pipeline = ConsistencyPipeline.from_pretrained(run)
    pipeline.id2label = dict(enumerate(["small", "middle", "large", "huge"]))
    pipeline.save_pretrained(run)
    return run


@pytest.mark.slow
def test_names_of_classes_are_read_from_the_hub_and_from_its_cache(hub, named, tmp_path):
    hub.add_folder(NAME, named)
    (named / "labels.json").unlink()
    hub.add_folder("someone/unnamed", named)
    done = client(hub, tmp_path / "home", "-c", LABELS, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").rglob("labels.json"))
