#!/bin/sh
# The first 40 minutes on a GPU: is everything right on it, how fast is a step, and then CIFAR-10. Nine minutes at most a
# call. From the root of a checkout, with the package installed:
#
#   sh benchmarks/gpu.sh [FOLDER [FIRST]]     # results go into FOLDER [benchmarks/results]; FIRST is the line to begin with
#   sh benchmarks/gpu.sh --rehearse FOLDER    # everything on the CPU, with tiny sizes
#
# Where the time does not suffice for all lines, the last words say which line to go on with, as FIRST.
# Nothing else may run on the card. Each line writes results of its own as they come; a failed one does not end the rest.
# $DATA is a file of CIFAR-10 instead of the data set of the Hub, $FEATURES a file for measure.py.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -eu
rehearse=
[ "${1-}" != --rehearse ] || { rehearse=yes; shift; }
out=${1:-benchmarks/results}
first=${2:-1}
python=${PYTHON:-python}
seconds=${SECONDS_OF_A_CALL:-530}
[ -z "$rehearse" ] || seconds=100000
end=$(($(date +%s) + seconds))
line=0
mkdir -p "$out"
# Compiled code is kept from one call to the next.
TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$(pwd)/runs/inductor}
export TORCHINDUCTOR_CACHE_DIR

line() { # SECONDS NAME COMMAND ...: a line of at most so many seconds, whose words go into a file of its own, too
  most=$1
  [ -z "$rehearse" ] || most=$((4 * most)) # a CPU, and perhaps beside other work
  name=$2
  shift 2
  line=$((line + 1))
  [ "$line" -ge "$first" ] || return 0
  left=$((end - $(date +%s)))
  if [ "$left" -lt 60 ]; then
    echo "no time for line $line: go on with  sh benchmarks/gpu.sh $out $line"
    exit 0
  fi
  [ "$left" -lt "$most" ] || left=$most
  echo "line $line: $name"
  if timeout "$left" "$@" > "$out/gpu_$name.txt" 2>&1; then
    tail -n 12 "$out/gpu_$name.txt"
  else
    tail -n 40 "$out/gpu_$name.txt"
    echo "failed: $name"
  fi
}
bench() { # NAME FLAGS ...
  name=$1
  shift
  line 180 "bench_$name" $python benchmarks/bench.py --warm "$warm" --timed "$timed" --output "$out/gpu_$name" "$@"
}

warm=8 timed=20
modes="eager captured compiled reduce-overhead"
small="--parts step --methods iCT"
large="--parts step --methods iCT --unet ict_cifar10_unet.json"
batches="80 1024"
middle=256
precision=bf16
tests="slow or not slow"
if [ -n "$rehearse" ]; then
  warm=1 timed=1
  modes=eager
  small="--parts step --methods iCT --unet benchmarks/unet_16.json"
  large=$small
  batches=2
  middle=2
  precision=fp32
  tests="not slow"
fi

line 120 preflight $python benchmarks/gpu_check.py preflight
line 500 tests $python -m pytest -q tests/test_step.py tests/test_dropout.py tests/test_metrics.py -m "$tests"
line 400 sync $python benchmarks/gpu_check.py sync
line 120 masks $python benchmarks/gpu_check.py masks
line 300 settings $python benchmarks/gpu_check.py settings
for batch in $batches; do
  for mode in $modes; do
    bench "${mode}_$batch" $small --precisions $precision --batch_sizes "$batch" --modes "$mode"
  done
done
line 120 profile $python benchmarks/gpu_check.py profile
if [ -n "$rehearse" ]; then
  echo "all lines are done; on a GPU, benchmarks/runs/cifar10_h200.sh and cifar10_tuned_h200.sh come next"
  exit 0
fi
line 530 cifar10 sh benchmarks/runs/cifar10_h200.sh
line 530 cifar10_2 sh benchmarks/runs/cifar10_h200.sh
line 530 cifar10_3 sh benchmarks/runs/cifar10_h200.sh
line 530 cifar10_4 sh benchmarks/runs/cifar10_h200.sh
line 530 cifar10_tuned sh benchmarks/runs/cifar10_tuned_h200.sh
line 530 cifar10_tuned_2 sh benchmarks/runs/cifar10_tuned_h200.sh
line 530 cifar10_tuned_3 sh benchmarks/runs/cifar10_tuned_h200.sh
line 530 cifar10_tuned_4 sh benchmarks/runs/cifar10_tuned_h200.sh
bench act_80 --parts step --methods iCT "ACT on CT" "relativistic on iCT" --precisions $precision --batch_sizes 80 --modes captured
bench large $large --precisions fp32 tf32 $precision --batch_sizes $middle 1024
bench large_captured $large --precisions tf32 $precision --batch_sizes $middle 1024 --modes captured
bench channels_last $large --precisions "bf16 channels-last" --batch_sizes 1024 --modes captured
bench rest --parts sampling data checkpoint start --sampling_batches 1 64 1024
echo "all lines are done"
