#!/usr/bin/env python
"""What evaluation costs: a Frechet distance of 2048 features, and the memory of 50,000 neighbours.

    python benchmarks/evaluation_cost.py --output benchmarks/results/evaluation_cost

Features are random; times do not depend on what they are. Memory is the peak of a process that does nothing else.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import scipy.linalg
import torch
from provenance import heading, provenance

from diffusers_ict.evaluation import Moments, coverage_measures, frechet_distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--only_neighbours", action="store_true", help="the part that is measured in its own process")
    options = parser.parse_args()
    if options.only_neighbours:
        print(json.dumps(neighbours(options.images, options.dim)))
        return
    command = [sys.executable, __file__, "--output", "-", "--only_neighbours"]
    command += ["--images", str(options.images), "--dim", str(options.dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = {**provenance(), "images": options.images, "dim": options.dim, "threads": torch.get_num_threads()}
    report |= {"neighbours": json.loads(done.stdout), "frechet": frechet(options.dim)}
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(report))
    print(table(report))


def frechet(dim: int) -> dict[str, float]:
    """Seconds of one distance between moments of `dim` features: ours, and by a square root of the product."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3 * dim, dim, generator=generator) @ torch.randn(dim, dim, generator=generator) / dim**0.5
            for _ in range(2))  # fmt: skip
    moments = [Moments.of(x) for x in (a, b)]
    ours, seconds = timed(lambda: frechet_distance(*moments))
    theirs, peer_seconds = timed(lambda: by_square_root(*moments))
    return {"seconds": seconds, "square_root_seconds": peer_seconds, "relative_difference": abs(ours / theirs - 1)}


def by_square_root(a: Moments, b: Moments) -> float:
    """The formula as it stands, with scipy's root of a matrix, as pytorch-fid and torch-fidelity compute it."""
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    return ((a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root.trace()).item()


def timed(call: Callable[[], float]) -> tuple[float, float]:
    """(what it returns, seconds)."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def neighbours(count: int, dim: int) -> dict[str, float]:
    """Seconds and peak memory of precision, recall, density and coverage between `count` and `count` images."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(count, dim, generator=generator) for _ in range(2))
    _, seconds = timed(lambda: coverage_measures(real, fake))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_gib": peak / 2**20, "at_start_gib": before / 2**20}


def table(report: dict) -> str:
    """The report as Markdown."""
    f, n = report["frechet"], report["neighbours"]
    size = f"{report['images']:,} x {report['images']:,}, {report['dim']} features"
    return "\n".join(
        [
            f"{heading(report)}, {report['threads']} threads, random features.",
            "",
            "| what | seconds | by scipy's square root | memory of the process |",
            "|---|---|---|---|",
            f"| Frechet distance, {report['dim']} features | {f['seconds']:.1f} | {f['square_root_seconds']:.1f} | |",
            f"| precision, recall, density, coverage, {size} | {n['seconds']:.0f} | | {n['peak_gib']:.2f} GiB |",
            "",
            f"The two Frechet distances differ by {f['relative_difference']:.1e}, relative.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
