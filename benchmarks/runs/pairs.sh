#!/bin/sh
# Pairs of CIFAR-10 against zero-shot edits: grey to colour, and 16 to 32 pixels, at equal steps of one core.
#
#   TRAIN=train.parquet TEST=test.parquet sh benchmarks/runs/pairs.sh
#
# Three runs of the same network and recipe: without conditions, for the edits, and one for each condition, of which the
# difference is learned (CONDITION_FLAGS=" " for the images instead). Stop it at any time: the same command goes on. The other
# variables make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
python=${PYTHON:-python}
runs=${RUNS:-runs/pairs}
steps=${STEPS:-800}

[ -e "$runs/train.npz" ] || $python benchmarks/runs/cifar10_pairs.py "$TRAIN" "$runs/train.npz"
[ -e "$runs/test.npz" ] || $python benchmarks/runs/cifar10_pairs.py "$TEST" "$runs/test.npz" --count 1000
for run in image grey small; do
  condition="--conditioning_image_column $run ${CONDITION_FLAGS:---learn_residual}"
  [ $run != image ] || condition=
  [ -e "$runs/$run/model_index.json" ] || $python train_scripts/train_ict.py --config small_budget \
    --model_config_name_or_path "${UNET:-benchmarks/runs/fashion32_unets/narrow.json}" \
    --dataset_name "$runs/train.npz" --image_column image $condition --max_train_steps "$steps" \
    --checkpointing_steps $((steps / 4)) --validation_steps "$steps" --output_dir "$runs/$run" --resume_from_checkpoint latest
done
$python benchmarks/pairs.py --runs "$runs" --data "$runs/test.npz" --output "${RESULTS:-benchmarks/results}/pairs"
