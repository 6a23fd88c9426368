#!/bin/sh
# Fashion-MNIST padded to 32x32, by class: a DDPM, aligned and tuned with a tenth of its images, and measured beside it.
# The UNet is that of fashion32_ict.sh.
#
#   sh benchmarks/runs/fashion32_tuned.sh
#
# Stop it at any time: the same command goes on. The images are those of the Hub, or of $SOURCE, an .npz file. The
# figures end in $RESULTS; the others make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
runs=${RUNS:-runs}
data=$runs/fashion32.npz
ddpm=$runs/fashion32_ddpm
run=$runs/fashion32_tuned
results=${RESULTS:-benchmarks/results}
steps=${STEPS:-700}
unet=benchmarks/runs/fashion32_unets/narrow.json

[ -e "$data" ] || $python benchmarks/runs/fashion_mnist.py "$data" ${SOURCE:+--source "$SOURCE"}
[ -e "$ddpm/model_index.json" ] || OMP_NUM_THREADS=1 $python benchmarks/ddpm_train.py \
  --dataset_name "$data" --class_conditional --model_config_name_or_path "${UNET:-$unet}" --train_batch_size 16 \
  --learning_rate 1e-3 --max_train_steps "${DDPM_STEPS:-7000}" --output_dir "$ddpm"
# A tenth of alignment, and five stages in the rest, as on the digits.
[ -e "$run/model_index.json" ] || OMP_NUM_THREADS=1 $python train_scripts/train_ict.py --loss ect \
  --pretrained_model_name_or_path "$ddpm" --dataset_name "$data" --class_conditional --train_batch_size 16 --dropout 0 \
  --objective align_steps=$((steps / 10)) stage_steps=$((steps * 9 / 50)) --max_train_steps "$steps" \
  --learning_rate 1e-3 --lr_scheduler cosine --ema_decays 0.999 --checkpointing_steps $((steps / 10)) \
  --output_dir "$run" --resume_from_checkpoint latest
$python benchmarks/measure.py "$run" --data "$data" --start "$ddpm" --samples "${SAMPLES:-5000}" --output "$results/fashion32_tuned"
