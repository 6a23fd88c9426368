#!/bin/sh
# A latent consistency model from nothing: an autoencoder of 64x64 mosaics of Fashion-MNIST, then a consistency model of
# its 8x8 latents, which stock LDMPipeline draws with.
#
#   sh benchmarks/runs/latents.sh
#
# Stop it at any time: the same command goes on. SOURCE is an .npz file of Fashion-MNIST instead of a download; the other
# variables make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
runs=${RUNS:-runs/latents}
results=${RESULTS:-benchmarks/results}
parts=benchmarks/runs/latents.py

[ -e "$runs/mosaics.npz" ] || $python $parts mosaics "$runs/mosaics.npz" ${SOURCE:+--source "$SOURCE"}
[ -e "$runs/vae/config.json" ] || $python $parts autoencoder "$runs/mosaics.npz" "$runs/vae" \
  --steps "${VAE_STEPS:-2000}"
[ -e "$runs/model/model_index.json" ] || $python train_scripts/train_ict.py --dataset_name "$runs/mosaics.npz" \
  --pretrained_vae_name_or_path "$runs/vae" --model_config_name_or_path benchmarks/runs/latents_unet.json \
  --objective s1=40 --reference_batch_size 512 --dropout 0 --train_batch_size 16 --max_train_steps "${STEPS:-3500}" \
  --learning_rate 1e-3 --lr_scheduler cosine --ema_decays 0.999 --license mit --output_dir "$runs/model" \
  --resume_from_checkpoint latest
[ -e "$runs/classifier.safetensors" ] || $python $parts classifier "$runs/mosaics.npz" "$runs/classifier.safetensors" \
  --steps "${CLASSIFIER_STEPS:-600}"
$python $parts figures "$runs/model" --data "$runs/mosaics.npz" --classifier "$runs/classifier.safetensors" \
  --samples "${SAMPLES:-2500}" --output "$results/latents"
