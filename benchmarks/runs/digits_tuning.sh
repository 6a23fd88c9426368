#!/bin/sh
# A DDPM of the digits of scikit-learn, trained as diffusers trains them, and tuned into a consistency model: against
# training from scratch at equal seconds, three seeds.
#
#   sh benchmarks/runs/digits_tuning.sh
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
work=runs/digits_tuning
mkdir -p "$work"
[ -e "$work/digits.npz" ] || PYTHONPATH=benchmarks${PYTHONPATH:+:$PYTHONPATH} $python -c "
from pathlib import Path
from compare import write_digits
write_digits(Path('$work/digits.npz'))"
[ -e "$work/ddpm/model_index.json" ] || OMP_NUM_THREADS=1 $python benchmarks/ddpm_train.py --dataset_name "$work/digits.npz" \
  --train_batch_size 32 --learning_rate 1e-3 --max_train_steps "${DDPM_STEPS:-1600}" --output_dir "$work/ddpm"
$python benchmarks/compare.py --trials benchmarks/runs/digits_tuning.yaml --data "$work/digits.npz" \
  --seconds "${SECONDS_EACH:-60}" --seeds 0 1 2 --jobs "${JOBS:-2}" --calibration_steps 180 --work "$work/runs" \
  --output "${RESULTS:-benchmarks/results}/digits_tuning"
