#!/bin/sh
# iCT on Fashion-MNIST padded to 32x32, by class, in 80 minutes of one core: the recipe small_budget, with twice its
# noise levels, as the run is twenty times as long as the trials.
#
#   sh benchmarks/runs/fashion32_ict.sh
#
# Stop it at any time: the same command goes on from the last checkpoint. The images are those of the Hub, or of
# $SOURCE, an .npz file. The model and its card end in $CARD, its figures in $RESULTS; the others make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
runs=${RUNS:-runs}
data=$runs/fashion32.npz
run=$runs/fashion32
results=${RESULTS:-benchmarks/results}
card=${CARD:-model_cards/fashion32}
steps=${STEPS:-8000}
unet=benchmarks/runs/fashion32_unets/narrow.json

[ -e "$data" ] || $python benchmarks/runs/fashion_mnist.py "$data" ${SOURCE:+--source "$SOURCE"}
[ -e "$run/model_index.json" ] || OMP_NUM_THREADS=1 $python train_scripts/train_ict.py --config small_budget \
  --dataset_name "$data" --class_conditional --model_config_name_or_path "${UNET:-$unet}" --max_train_steps "$steps" --objective s1=80 \
  --ema_snapshot_steps $((steps / 20)) --checkpointing_steps $((steps / 20)) --license mit \
  --output_dir "$run" --resume_from_checkpoint latest

# Another average of the weights, and both measured.
$python train_scripts/ema.py "$run" --std 0.1
[ -e "$runs/classifier.pt2" ] || $python benchmarks/features.py "$data" "$runs/classifier.pt2"
$python train_scripts/evaluate.py "$run" --dataset_name "$data" --extractor "$runs/classifier.pt2" \
  --metrics fid kid is pr --num_samples "${SAMPLES:-10000}" --steps 1 2 --variants published std01

sh benchmarks/runs/keep.sh "$run" "$card" 40
$python benchmarks/measure.py "$card" --data "$data" --samples "${SAMPLES:-10000}" --output "$results/fashion32_ict"
