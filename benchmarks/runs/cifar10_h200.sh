#!/bin/sh
# iCT on CIFAR-10 in half an hour of one H200: 10 M images, the 27.5 M UNet of ACT, bf16, compiled and captured.
# Not run yet; tests/test_runs.py runs it with a tiny UNet and 200 steps on a CPU.
#
#   sh benchmarks/runs/cifar10_h200.sh            # unconditional
#   CLASSES=yes sh benchmarks/runs/cifar10_h200.sh
#
# Each call trains for at most $MINUTES and ends with a checkpoint; call it again until it says that it is done. Then it
# measures the averages after every tenth of the run, and writes results and grids into $RESULTS.
# $DATA may be a file instead of the data set of the Hub, $FEATURES a file for measure.py; the others make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
name=cifar10_ict${CLASSES:+_classes}
data=${DATA:-uoft-cs/cifar10}
run=${RUNS:-runs}/$name
results=${RESULTS:-benchmarks/results}
python=${PYTHON:-python}
steps=${STEPS:-20000}
tenth=$((steps / 10))
unet=src/diffusers_ict/recipes/act_cifar10_unet.json

set -- --loss ict --dataset_name "$data" --random_flip --output_dir "$run" --resume_from_checkpoint latest \
  --model_config_name_or_path "${UNET:-$unet}" \
  --train_batch_size "${BATCH:-512}" --max_train_steps "$steps" --learning_rate 2e-4 --lr_warmup_steps "$tenth" \
  --dropout 0.2 --ema_decays 0.999 0.9999 --ema_snapshot_steps "$tenth" \
  --checkpointing_steps "$tenth" --max_train_minutes "${MINUTES:-8.5}" --seed 0
[ -z "${CLASSES:-}" ] || set -- "$@" --class_conditional
[ -n "${EAGER:-}" ] || set -- "$@" --mixed_precision bf16 --torch_compile
code=0
[ -e "$run/model_index.json" ] || $python train_scripts/train_ict.py "$@" || code=$?
if [ "$code" = 3 ]; then
  echo "not done: call it again"
  exit 0
fi
[ "$code" = 0 ] || exit "$code"

measure() {
  $python benchmarks/measure.py "$run" --data "$data" --samples "${SAMPLES:-10000}" ${FEATURES:+--features "$FEATURES"} "$@"
}
for part in ${TENTHS:-1 2 3 4 5 6 7 8 9 10}; do
  step=$((part * tenth))
  [ -e "$results/$name-$step.md" ] && continue
  $python train_scripts/ema.py "$run" --std 0.05 --step "$step"
  measure --variant std005 --output "$results/$name-$step"
done
measure --output "$results/$name"
echo "done: $results/$name.md"
