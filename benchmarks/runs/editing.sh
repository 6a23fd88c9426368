#!/bin/sh
# The table of editing: two models of digits, grey and coloured, trained here, and the committed model of Fashion-MNIST.
# FASHION is an .npz file that benchmarks/runs/fashion_mnist.py has made.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
python=${PYTHON:-python}
cd "$(dirname "$0")/../.."
FASHION=${FASHION:-runs/fashion32.npz}
$python examples/demo_digits.py --output_dir runs/digits
$python benchmarks/runs/coloured_digits.py runs/coloured_digits.npz
$python train_scripts/train_ict.py --config digits --dataset_name runs/coloured_digits.npz --max_train_steps 600 \
  --output_dir runs/coloured_digits
$python benchmarks/editing.py --models runs/digits runs/coloured_digits model_cards/fashion32 \
  --data runs/digits.npz runs/coloured_digits.npz "$FASHION" --names digits 'coloured digits' Fashion-MNIST \
  --output benchmarks/results/editing
