#!/bin/sh
# Guidance on Fashion-MNIST padded to 32x32: small_budget with every tenth label dropped, drawn with several scales.
#
#   sh benchmarks/runs/fashion32_guidance.sh
#
# Led away from the output without labels, and from an earlier average of the weights. The figures and the curve end in
# $RESULTS. The images are those of the Hub, or of $SOURCE, an .npz file; the others make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
runs=${RUNS:-runs}
data=$runs/fashion32.npz
run=$runs/fashion32_guidance
results=${RESULTS:-benchmarks/results}
steps=${STEPS:-1600}
unet=benchmarks/runs/fashion32_unets/narrow.json

[ -e "$data" ] || $python benchmarks/runs/fashion_mnist.py "$data" ${SOURCE:+--source "$SOURCE"}
[ -e "$run/model_index.json" ] || OMP_NUM_THREADS=1 $python train_scripts/train_ict.py --config small_budget \
  --dataset_name "$data" --class_conditional --label_dropout 0.1 --model_config_name_or_path "${UNET:-$unet}" \
  --ema_decays 0.999 0.9 --max_train_steps "$steps" --checkpointing_steps $((steps / 4)) --output_dir "$run" \
  --resume_from_checkpoint latest
[ -e "$runs/classifier.pt2" ] || $python benchmarks/features.py "$data" "$runs/classifier.pt2"
for guide in "" ema9; do
  name=fashion32_guidance${guide:+_$guide}
  OMP_NUM_THREADS=1 $python train_scripts/evaluate.py "$run" --dataset_name "$data" --extractor "$runs/classifier.pt2" \
    --metrics fid pr --num_samples "${SAMPLES:-5000}" --steps 1 2 --variants published \
    --guidance_scales 1 1.25 1.5 2 ${guide:+--guide "$guide"} --output_dir "$runs/$name"
  mkdir -p "$results"
  cp "$runs/$name/evaluation.json" "$results/$name.json"
  cp "$runs/$name/evaluation.png" "$results/$name.png"
done
