"""Names and credentials: what others chose stands for itself in every place, and no secret stands in any."""

import argparse
import json
import os
import shlex
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from diffusers_ict.commands import train
from diffusers_ict.commands.main import PROGRAMS
from diffusers_ict.credentials import scrubbed
from diffusers_ict.files import portable, public_name
from diffusers_ict.hub.card import _sections, make_card
from diffusers_ict.names import code, literal, markdown, shell, visible

ODD = {
    "newline": "two\nlines", "bar": "a|b", "backticks": "``` `x`", "comment": "<!-- /diffusers-ict -->",
    "tag": "<img src=x>",
    "escape": "\x1b[31mred\x07", "direction": "abc\u202egnp.exe", "quote": "it's \"so\"", "dollar": "$(date) \\n",
    "surrogate": os.fsdecode(b"caf\xe9"), "line separator": "a\u2028b",
    "link": "[a](http://b.c) *x* _y_", "plain": "猫 my_cats-2",
}  # fmt: skip
LONG = "long " * 1000


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_shell_reads_the_same_word_from_one_line_without_escapes(name):
    line = shell(["printf", "%s", name])
    assert line.isprintable()
    assert "<!--" not in line
    read = subprocess.run(["bash", "-c", os.fsencode(line)], capture_output=True, check=True, timeout=300)
    assert read.stdout == os.fsencode(name)


def test_usual_words_are_quoted_as_ever():
    words = ["diffusers-ict", "publish", "/a/evil model", "--repo=x"]
    assert shell(words) == shlex.join(words) == "diffusers-ict publish '/a/evil model' --repo=x"


@pytest.mark.parametrize("name", ["-out\nput", "--help", "a\nb"])
def test_a_finished_run_says_where_it_is_in_lines_that_can_be_pasted(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers_ict.training.train.train", lambda recipe: "someone/x was not published: why\nnot.")
    assert train.main(["--train_data_dir", "x", f"--output_dir={name}", "--hub_model_id", "someone/x"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith(f"The model is in {visible(name)}: samples in {visible(name)}/samples")
    assert (len(out.splitlines()), len(err.splitlines())) == (5, 1)
    for line in [*out.splitlines()[2:], err.rstrip("\n").partition("finish with ")[2]]:
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, timeout=300)
        command, operand = words.stdout.decode().split("\0")[1:3]
        assert command in PROGRAMS
        parser = argparse.ArgumentParser()
        parser.add_argument("folder")
        assert os.path.normpath(parser.parse_args([operand]).folder) == name


def test_a_message_is_one_line_whatever_the_folder_is_called(tmp_path, capsys):
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    words = ["--train_data_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    assert train.main(words) == 2
    err = capsys.readouterr().err
    assert r"two\nlines holds no images" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", [*ODD.values(), LONG], ids=[*ODD, "long"])
def test_names_in_markdown_and_python_are_one_line_and_close_nothing(name):
    for written in (markdown(name), code(name)):
        assert written.isprintable()
        assert "<!--" not in written
        assert len(written) < 200
    assert code(name).count("`") == 2
    unescaped = markdown(name).replace("\\\\", "").replace("\\|", "").replace("\\`", "")
    assert not {"|", "`", "<"} & set(unescaped)
    assert json.loads(literal(name)) == eval(literal(name)) == name
    assert literal(name).isprintable()
    assert "<!--" not in literal(name)


def test_usual_names_stay_as_they_are():
    for name in ("my_cats-2", "scikit-learn digits (8x8)", "user/name", "猫", "data.npz: 64", "👩\u200d🚀"):
        assert (markdown(name), code(name), visible(name)) == (name, f"`{name}`", name)


@pytest.mark.parametrize("name", [*ODD.values(), LONG], ids=[*ODD, "long"])
def test_a_card_has_the_same_lines_whatever_things_are_called(run, name):
    """Data, classes, base model, command, and the model itself: the sections, table rows and fences stay the same."""

    def card_of(name: str) -> str:
        path = run / "run.json"
        names = {"dataset": name, "base_model": name, "command": f"diffusers-ict train {name}", "objective": name}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
        (run / "labels.json").write_text(json.dumps({"id2label": {"0": name, "1": "b"}}))
        return make_card(run, f"someone/{name.replace('/', '')}").content

    usual, card = card_of("cats"), card_of(name)
    assert [section.name for section in _sections(card)] == [section.name for section in _sections(usual)]
    bodies = [ModelCard(text).text.splitlines() for text in (usual, card)]
    assert len(bodies[0]) == len(bodies[1])
    for ours, theirs in zip(*bodies):
        assert theirs.isprintable()
        assert ours.startswith("```") == theirs.startswith("```")
        assert ours.startswith("|") == theirs.startswith("|")
        if ours.startswith("|"):
            assert ours.replace("\\|", "").count("|") == theirs.replace("\\\\", "").replace("\\|", "").count("|")
    card.encode()


PASSWORD = "tr0ub4dor"
SECRETS = {
    "address": f"cannot reach https://user:{PASSWORD}@host.example/npm/x.tgz",
    "slash in it": f"cannot reach https://user:{PASSWORD}/1@host.example/",
    "no user": f"https://{PASSWORD}@host.example failed",
    "a part of it": f"nonnumeric port: '{PASSWORD}@host.example'",
    "header": f"Authorization: Bearer {PASSWORD}.x",
    "query": f"GET /file?X-Amz-Signature={PASSWORD}&a=1",
    "token of the Hub": f"no access with hf_{PASSWORD}abcdefgh",
    "variable": f"it said {PASSWORD}!",
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_credentials_are_taken_out(text, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"https://user:{PASSWORD}@host.example/npm")
    assert PASSWORD not in scrubbed(text)
    assert PASSWORD not in portable(text) + public_name(text)[0] + shell([text])
    assert scrubbed(text).split()[0] == text.split()[0] or "://" in text.split()[0]


def test_what_is_no_credential_stays():
    for text in (
        "http://127.0.0.1:9/@scope/pkg@1.0",
        "user@host",
        "--seed=3 a?key",
        "hf_hub_download",
        "https://a.b/c:d",
    ):
        assert scrubbed(text) == text


SHOWS = f"""
import sys, warnings
from diffusers_ict.commands.program import run_program
from diffusers_ict.errors import UserError

def body():
    print("a note of https://user:{PASSWORD}@host/")
    print("a folder \\x1b]0;title\\x07 \\u202e \\x9b, a bar \\x1b[A")
    warnings.warn("a warning of hf_{PASSWORD}abcdefgh")
    if sys.argv[1] == "fails":
        raise RuntimeError("of https://user:{PASSWORD}@host/")
    raise UserError("no `folder` \\x1b[31mred \\u202e of https://user:{PASSWORD}@host/, got " + "iVBOR" * 1000)

sys.exit(run_program("shows", body))
"""


@pytest.mark.parametrize(("how", "code"), [("refuses", 2), ("fails", 1)])
def test_no_program_shows_credentials_or_sends_escapes_to_the_terminal(how, code):
    command = [sys.executable, "-c", SHOWS, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == code
    assert PASSWORD not in said
    assert "a note of https://(password)@host/" in said
    assert "a warning of (token)" in said
    assert r"a folder \x1b]0;title\x07 \u202e \x9b, a bar " + "\x1b[A" in said
    assert not {"\x1b", "\u202e", "\x9b"} & set(said.replace("\x1b[A", ""))
    assert len(said) < 3000


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/home/me/images", "images"),
        ("--train_data_dir=/home/me/images", "--train_data_dir=images"),
        ("lpips_weights=/home/me/lpips.safetensors", "lpips_weights=lpips.safetensors"),
        ("file:///home/me/images", "images"),
        ("--dataset_name=me/images", "--dataset_name=me/images"),
        ("a b=/c", "a b=/c"),
    ],
)
def test_no_folder_of_this_machine_is_written(word, written):
    assert portable(word) == written
