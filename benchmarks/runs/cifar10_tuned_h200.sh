#!/bin/sh
# CIFAR-10 in half an hour of one H200: a DDPM of 15 minutes, aligned and tuned for 15, with the UNet of cifar10_h200.sh,
# whose half hour of iCT from scratch it is compared with.
# Not run yet; tests/test_runs.py runs it with a tiny UNet and few steps on a CPU.
#
#   sh benchmarks/runs/cifar10_tuned_h200.sh
#
# Each call trains for at most $MINUTES; call it again until it says that it is done. $DATA may be a file instead of the
# data set of the Hub, $FEATURES a file for measure.py; the others make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
data=${DATA:-uoft-cs/cifar10}
ddpm=${RUNS:-runs}/cifar10_ddpm
run=${RUNS:-runs}/cifar10_tuned
results=${RESULTS:-benchmarks/results}
python=${PYTHON:-python}
steps=${STEPS:-10000}
unet=${UNET:-src/diffusers_ict/recipes/act_cifar10_unet.json}

set -- --dataset_name "$data" --random_flip --max_train_minutes "${MINUTES:-8.5}"
[ -n "${EAGER:-}" ] || set -- "$@" --mixed_precision bf16 --torch_compile
code=0
if [ ! -e "$ddpm/model_index.json" ]; then
  $python benchmarks/ddpm_train.py "$@" --model_config_name_or_path "$unet" --train_batch_size "${BATCH:-512}" \
    --learning_rate 4e-4 --max_train_steps "${DDPM_STEPS:-10000}" --output_dir "$ddpm" || code=$?
elif [ ! -e "$run/model_index.json" ]; then
  $python train_scripts/train_ict.py "$@" --loss ect --pretrained_model_name_or_path "$ddpm" \
    --train_batch_size "${BATCH:-512}" --learning_rate 2e-4 --lr_scheduler cosine --dropout 0.2 \
    --objective align_steps=$((steps / 20)) stage_steps=$((steps * 19 / 120)) --max_train_steps "$steps" \
    --ema_decays 0.999 0.9999 --checkpointing_steps $((steps / 10)) --output_dir "$run" \
    --resume_from_checkpoint latest || code=$?
fi
[ "$code" = 0 ] || [ "$code" = 3 ] || exit "$code"
if [ ! -e "$run/model_index.json" ]; then
  echo "not done: call it again"
  exit 0
fi
$python benchmarks/measure.py "$run" --data "$data" --samples "${SAMPLES:-10000}" ${FEATURES:+--features "$FEATURES"} \
  --output "$results/cifar10_tuned"
echo "done: $results/cifar10_tuned.md"
