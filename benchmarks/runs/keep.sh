#!/bin/sh
# What is committed of a run: its weights in half precision, what its card shows, the card, and grids of samples.
#
#   sh benchmarks/runs/keep.sh RUN CARD SAMPLES
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
run=$1
card=$2
samples=$3
python=${PYTHON:-python}

mkdir -p "$card/samples"
for file in recipe.yaml run.json evaluation.json evaluation.png training.png; do
  cp "$run/$file" "$card"
done
cp "$(ls "$run"/samples/step-*.png | tail -n 1)" "$card/samples"
$python -c "
import sys
from pathlib import Path
import torch
from diffusers_ict import ConsistencyPipeline
from diffusers_ict.hub.card import write_card
ConsistencyPipeline.from_pretrained(sys.argv[1]).to(torch.float16).save_pretrained(sys.argv[2])
write_card(Path(sys.argv[2]))" "$run" "$card"
for count in 1 2; do
  $python -m diffusers_ict sample "$card" --num_samples "$samples" --num_inference_steps $count \
    --output "$card/samples/$count-step.png"
done
