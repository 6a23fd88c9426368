#!/bin/sh
# The speed of a step on one GPU: everything eager, then what counts compiled and captured; nine minutes at most a call.
# From the root of a checkout, with the package installed:  sh benchmarks/h200.sh [FOLDER [FIRST]]
# Where the time does not suffice for all lines, the last words say which line to go on with, as FIRST.
# Before it, in a call of its own:  python -m pytest tests/test_step.py tests/test_dropout.py -m "slow or not slow"
# Nothing else may run on the card. Each line writes results of its own, row by row; a failed one does not end the rest.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
out=${1:-benchmarks/results}
first=${2:-1}
end=$(($(date +%s) + 530))
line=0
bench() {
  line=$((line + 1))
  [ "$line" -ge "$first" ] || return 0
  left=$((end - $(date +%s)))
  if [ "$left" -lt 60 ]; then
    echo "no time for line $line: go on with  sh benchmarks/h200.sh $out $line"
    exit 0
  fi
  name=$1
  shift
  [ "$left" -lt 180 ] || left=180
  timeout "$left" python benchmarks/bench.py --warm 8 --timed 20 --output "$out/h200_$name" "$@" || echo "failed: $name"
}

small="--parts step --methods iCT"
large="--parts step --methods iCT --unet ict_cifar10_unet.json"
act="--parts step --precisions bf16 --compiled --warm 68 --timed 32"  # two gradient penalties before, two within
bench compiled_80 $small --precisions bf16 --batch_sizes 80 --compiled
bench compiled_large_1024 $large --precisions bf16 --batch_sizes 1024 --compiled
bench compiled_act $act --methods "ACT on CT" --batch_sizes 80
bench eager --parts step --methods iCT "ACT on CT" --precisions fp32 tf32 bf16 --batch_sizes 80 256
bench eager_large $large --precisions fp32 tf32 bf16 --batch_sizes 256 1024
bench compiled_1024 $small --precisions bf16 tf32 --batch_sizes 1024 --compiled
bench compiled_256 $small --precisions bf16 tf32 --batch_sizes 256 --compiled
bench compiled_large_256 $large --precisions bf16 tf32 --batch_sizes 256 --compiled
bench channels_last $large --precisions "bf16 channels-last" --batch_sizes 1024 --compiled
bench compiled_fp32 $small --precisions fp32 --batch_sizes 80 1024 --compiled
bench act_256 $act --methods "ACT on CT" --batch_sizes 256 --compiled
bench rest --parts sampling data checkpoint start --sampling_batches 1 64 1024
echo "all lines are done"
