"""What pages of docs/ say of files, figures, flags and messages is so."""

import ast
import json
import re
from pathlib import Path

import network_cost
import pytest
import torch
from conftest import ROOT, make_unet
from diffusers.models.attention_processor import Attention

import diffusers_ict
from diffusers_ict.commands.main import main as program
from diffusers_ict.commands.program import as_flags

DOCS = ROOT / "docs"
GALLERY = (DOCS / "index.md").read_text("utf-8")
TROUBLE = (DOCS / "troubleshooting.md").read_text("utf-8")


def sentences() -> set[str]:
    """All texts of the package, with an ellipsis for what is filled in, as programs print them."""
    found = set()
    for file in Path(diffusers_ict.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return {as_flags(text) for text in found}


def test_programs_print_the_sentences_of_the_page_on_trouble():
    said = sentences()
    quoted = re.findall(r"^- `([^`]+)`<br>$", TROUBLE, re.M)
    assert len(quoted) > 20
    for sentence in quoted:
        pattern = re.compile(".*".join(map(re.escape, sentence.split("…"))), re.S)
        assert any(pattern.search(text) for text in said), sentence


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_pictures_of_pages_are_there(page):
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8")):
        assert (DOCS / name).is_file(), name


def test_each_picture_of_the_gallery_has_a_command_that_exists(capsys):
    _, *sections = re.split(r"(?m)^### ", GALLERY[: GALLERY.index("## Installation")])
    assert len(sections) >= 8
    for section in sections:
        assert "![" in section
        assert "```bash" in section or re.search(r"\]\(\w+\.md", section), section.splitlines()[0]
    shown = "\n".join(sections)
    for script in re.findall(r"sh (benchmarks/\S+)", shown):
        assert (ROOT / script).is_file()
    for target in re.findall(r"make (\w+)", shown):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8")
    for name, words in re.findall(r"diffusers-ict ([a-z]+) (.*)", shown):
        with pytest.raises(SystemExit):
            program([name, "--help"])
        assert set(re.findall(r"--\w+", words)) <= set(re.findall(r"--\w+", capsys.readouterr().out))


@pytest.mark.parametrize(
    ("model", "said"),
    [("avatars", "took {minutes:.0f} minutes of one core"), ("fashion32", "{minutes:.0f} minutes of one core"),
     ("digits", "trained for {tens:.0f} seconds on two cores")],
)  # fmt: skip
def test_times_in_the_gallery_are_those_of_the_runs(model, said):
    run = json.loads((ROOT / "model_cards" / model / "run.json").read_text("utf-8"))
    seconds = run["train_seconds"]
    assert said.format(minutes=seconds / 60, tens=round(seconds, -1)) in " ".join(GALLERY.split())
    assert f"{2 if model == 'digits' else 1} thread" in run["hardware"]


def test_times_and_memory_are_what_the_committed_counts_say():
    """The table of docs/gpu.md, and that of the result, are made of the counts and of runs that were measured."""
    report = json.loads((ROOT / "benchmarks" / "results" / "network_cost.json").read_text("utf-8"))
    lines = [f"| {' | '.join(line)} |" for line in network_cost.estimates(report["rows"])]
    for page in (ROOT / "benchmarks" / "results" / "network_cost.md", DOCS / "gpu.md"):
        assert "\n".join(lines) in page.read_text("utf-8")
    measured = [line for line in lines if "measured" in line]
    assert len(measured) == 2
    (step,) = (line for line in measured if "H200" in line)
    predicted, found = map(float, re.findall(r"([\d.]+) GiB; ([\d.]+) measured", step)[0])
    assert abs(predicted / found - 1.2) < 0.05, "a fifth, as the page says"


def test_operations_and_memory_of_a_network_are_counted():
    """Those of its layers, by their definitions, and of two matrix products for each attention."""
    unet = make_unet()
    expected, given_to = 0, []

    def add(module, given, out) -> None:
        nonlocal expected
        given_to.extend(given)
        if isinstance(module, Attention):
            _, channels, height, width = out.shape
            expected += 4 * (height * width) ** 2 * channels
        else:
            expected += 2 * out.numel() * module.weight[0].numel()

    for module in unet.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear, Attention)):
            module.register_forward_hook(add)
    unet(torch.zeros(1, 1, 8, 8), 0)
    counted = network_cost.cost(make_unet().to("meta"), 8)
    assert counted["operations"] == expected
    assert counted["parameters"] == sum(weight.numel() for weight in unet.parameters())
    inputs = sum(value.nbytes for value in {id(value): value for value in given_to}.values())
    assert inputs <= counted["bytes"] < 3 * inputs, "that of a layer, and at most those of its norm and activation"
