#!/bin/sh
# All methods on the digits of scikit-learn by class, at equal seconds of one core: from scratch, with
# discriminators, and from a DDPM of the digits. 297 of the digits are seen by no run.
#
#   taskset -c 1 sh benchmarks/runs/digits_methods.sh
#
# Stop it at any time: the same command goes on. SECONDS_EACH, DDPM_STEPS and SEEDS make a trial small.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
python=${PYTHON:-python}
work=runs/digits_methods
mkdir -p "$work"
[ -e "$work/test.npz" ] || $python -c "
import numpy as np
from sklearn.datasets import load_digits
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.images * 255 / 16).round().astype(np.uint8)
for name, rows in (('train', order[297:]), ('test', order[:297])):
    np.savez('$work/' + name + '.npz', images=images[rows], labels=digits.target[rows])"
[ -e "$work/ddpm/model_index.json" ] || $python benchmarks/ddpm_train.py --dataset_name "$work/train.npz" \
  --class_conditional --train_batch_size 32 --learning_rate 1e-3 --max_train_steps "${DDPM_STEPS:-1600}" --output_dir "$work/ddpm"
$python benchmarks/compare.py --trials benchmarks/runs/digits_methods.yaml --data "$work/train.npz" \
  --held_out "$work/test.npz" --seconds "${SECONDS_EACH:-40}" --calibration_steps 90 --seeds ${SEEDS:-0 1 2} \
  --work "$work/runs" --output "${RESULTS:-benchmarks/results}/digits_methods"
