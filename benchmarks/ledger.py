#!/usr/bin/env python
"""Write benchmarks/LEDGER.md, one row for each documented run, from benchmarks/runs/ledger.yaml and the result files.

    python benchmarks/ledger.py

No figure of the ledger is typed: steps, times and distances are those of the results, parameters those of the UNets.
"""

import argparse
import json
from statistics import mean
from typing import Any

import torch
import yaml
from compare import value_of
from diffusers import UNet2DModel
from provenance import ROOT

from diffusers_ict.training.unets import default_unet_config

FOLDER = ROOT / "benchmarks"
HEAD = """# Ledger

Every documented run, the bad ones too. `benchmarks/ledger.py` writes this file from `runs/ledger.yaml` and the result
files; each result names its command, commit, machine and number of samples. Frechet distances of different features or
data cannot be compared with each other, and none is FID. Several seeds: means. A dash: not measured.
"""
COLUMNS = ("run", "data", "UNet", "M parameters", "seeds", "images seen", "minutes", "hardware", "Frechet 1 / 2 steps")
COLUMNS += ("features", "precision 1 / 2", "recall 1 / 2", "result", "remark")


def main() -> None:
    (FOLDER / "LEDGER.md").write_text(render())


def render() -> str:
    """The text of the ledger."""
    registered = yaml.safe_load((FOLDER / "runs" / "ledger.yaml").read_text())
    rows = [row_of(run) for entry in registered for run in runs_of(entry)]
    lines = [" | ".join(COLUMNS), "|".join(["---"] * len(COLUMNS)), *(" | ".join(row) for row in rows)]
    return "\n".join([HEAD, *(f"| {line} |" for line in lines)]) + "\n"


def runs_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of an entry: one, or each method of a comparison, whose UNet its flags or the entry name."""
    report = json.loads((FOLDER / "results" / f"{entry['result']}.json").read_text())
    if "method" in entry or "methods" not in report:
        return [entry]
    methods = {row["method"]: report["methods"].get(row["method"], []) for row in report["rows"]}
    return [
        {
            **entry,
            "run": f"{entry['run']}: {name}",
            "method": name,
            "unet": value_of("--model_config_name_or_path", flags) or entry["unet"],
        }
        for name, flags in methods.items()
    ]


def row_of(run: dict[str, Any]) -> list[str]:
    """One row: what the registry says of a run, and what its result file says."""
    report = json.loads((FOLDER / "results" / f"{run['result']}.json").read_text())
    rows = [row for row in report["rows"] if row.get("method") == run.get("method")]
    if not rows:
        raise SystemExit(f"{run['result']}.json has no rows of {run.get('method')}")
    config, unet = unet_of(run["unet"])
    found = [figures(row) for row in rows]
    batch = run.get("batch") or rows[0].get("batch_size") or batch_of(report, run["method"])
    seen = mean(row.get("steps", run.get("steps")) for row in rows) * batch
    return [
        run["run"],
        run["data"],
        unet,
        f"{parameters(config) / 1e6:.2f}",
        str(len(rows)),
        f"{seen:,.0f}",
        f"{mean(row['train_seconds'] for row in rows) / 60:.3g}",
        rows[0].get("hardware") or report["hardware"],
        pair(found, "frechet", "{:.3g}"),
        run.get("features") or report["features"],
        pair(found, "precision", "{:.2f}"),
        pair(found, "recall", "{:.2f}"),
        f"[{run['result']}](results/{run['result']}.md)",
        " ".join(filter(None, [run.get("remark"), f"[card](../{run['card']})" if "card" in run else None])) or "-",
    ]


def unet_of(given: str | dict[str, int]) -> tuple[dict[str, Any], str]:
    """(config, text): of a file, or the default for a resolution, a number of channels and one of classes."""
    if isinstance(given, dict):
        return default_unet_config(**given), "default"
    config = json.loads((ROOT / given).read_text())
    return config, f"[{', '.join(map(str, config['block_out_channels']))}](../{given})"


def figures(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of one model by number of steps; those of the demo stand side by side."""
    return row.get("results") or {steps: {"frechet": row[f"frechet_{steps}"]} for steps in ("1", "2")}


def pair(found: list[dict[str, dict[str, float]]], name: str, form: str) -> str:
    """The mean over the models, with one step and with two."""
    if any(name not in model[steps] for model in found for steps in ("1", "2")):
        return "-"
    return " / ".join(form.format(mean(model[steps][name] for model in found)) for steps in ("1", "2"))


def batch_of(report: dict[str, Any], method: str) -> int:
    """Images of a step: the last number that is given for the method, or for all."""
    given = value_of("--train_batch_size", [*report.get("train_flags", ()), *report.get("methods", {}).get(method, ())])
    return int(given or report["batch_size"])


def parameters(config: dict[str, Any]) -> int:
    """Weights of a UNet."""
    with torch.device("meta"):
        return sum(p.numel() for p in UNet2DModel.from_config(config).parameters())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
