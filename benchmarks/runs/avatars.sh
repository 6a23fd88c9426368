#!/bin/sh
# Avatars in colour at 32x32, by style: a DDPM of about 45 minutes of one core, aligned, tuned and finished in 45 more.
#
#   sh benchmarks/runs/avatars.sh
#
# Stop it at any time: the same command goes on. avatars.mjs draws the images, with packages of npm. The model and its
# card end in $CARD, its figures in $RESULTS; the others make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
runs=${RUNS:-runs/avatars}
ddpm=$runs/ddpm
tuned=$runs/tuned
run=$runs/finished
results=${RESULTS:-benchmarks/results}
card=${CARD:-model_cards/avatars}
steps=${STEPS:-8000}
more=${MORE_STEPS:-3500}
unet=benchmarks/runs/fashion32_unets/narrow.json

if [ ! -e "$runs/test/thumbs" ]; then
  npm install --no-save --prefix "$runs" @dicebear/core@9.4.3 @dicebear/collection@9.4.3 @resvg/resvg-js@2.6.2
  NODE_PATH=$runs/node_modules node benchmarks/runs/avatars.mjs "$runs" "${IMAGES:-4000}" "${HELD_OUT:-500}"
fi
data="--train_data_dir $runs/train --image_mode RGB --class_conditional"
[ -e "$ddpm/model_index.json" ] || OMP_NUM_THREADS=1 $python benchmarks/ddpm_train.py $data \
  --model_config_name_or_path "$unet" --train_batch_size 16 --learning_rate 1e-3 \
  --max_train_steps "${DDPM_STEPS:-18000}" --output_dir "$ddpm"
# A tenth of alignment, and five stages in the rest, as on the digits.
[ -e "$tuned/model_index.json" ] || OMP_NUM_THREADS=1 $python train_scripts/train_ict.py --loss ect $data \
  --pretrained_model_name_or_path "$ddpm" --train_batch_size 16 --dropout 0 \
  --objective align_steps=$((steps / 10)) stage_steps=$((steps * 9 / 50)) --max_train_steps "$steps" \
  --learning_rate 1e-3 --lr_scheduler cosine --ema_decays 0.999 --ema_snapshot_steps $((steps / 20)) \
  --checkpointing_steps $((steps / 20)) --license cc-by-4.0 --output_dir "$tuned" --resume_from_checkpoint latest
# More of the last stage, with averaged targets, which takes noise out of flat areas.
[ -e "$run/model_index.json" ] || OMP_NUM_THREADS=1 $python train_scripts/train_ict.py --loss ect $data \
  --pretrained_model_name_or_path "$tuned" --train_batch_size 16 --dropout 0 --objective q=32 stages=1 \
  --reference_batch_size 512 --max_train_steps "$more" --learning_rate 5e-4 --lr_scheduler cosine \
  --ema_decays 0.999 --checkpointing_steps $((more / 7)) --license cc-by-4.0 --output_dir "$run" \
  --resume_from_checkpoint latest

# Measured on images that no run has seen, beside the DDPM with 50 steps.
[ -e "$runs/classifier.pt2" ] || $python benchmarks/features.py "$runs/train" "$runs/classifier.pt2"
$python train_scripts/evaluate.py "$run" --train_data_dir "$runs/test" --image_mode RGB \
  --extractor "$runs/classifier.pt2" --metrics fid kid is pr --num_samples "${SAMPLES:-5000}" --steps 1 2
$python -m diffusers_ict inspect "$run" --train_data_dir "$runs/train" --image_mode RGB

sh benchmarks/runs/keep.sh "$run" "$card" 45
$python benchmarks/measure.py "$card" --data "$runs/train" --start "$ddpm" --samples "${MEASURED:-2000}" \
  --output "$results/avatars"
