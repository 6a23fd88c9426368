#!/bin/sh
# The speed of a step on one GPU, in at most nine minutes: everything eager, then what counts compiled and captured.
# From the root of a checkout, with the package installed:  sh benchmarks/h200.sh [FOLDER]
# First, in a call of its own:  python -m pytest tests/test_step.py tests/test_dropout.py -m "slow or not slow"
# Nothing else may run on the card. Each line writes its own result, so an interrupted run loses one line at most.
set -eu
out=${1:-benchmarks/results}
bench() { python benchmarks/bench.py --warm 8 --timed 20 "$@" || echo "failed: $*" >&2; }

large="--unet ict_cifar10_unet.json"
bench --parts step --output "$out/h200_compiled_80" --methods iCT --precisions bf16 --batch_sizes 80 --compiled
bench --parts step --output "$out/h200_compiled_large" $large --methods iCT --precisions bf16 --batch_sizes 1024 --compiled
bench --parts step --output "$out/h200_channels_last" $large --methods iCT --precisions "bf16 channels-last" --batch_sizes 1024 --compiled
bench --parts step --output "$out/h200_compiled_act" --methods "ACT on CT" --precisions bf16 --batch_sizes 80 --compiled --warm 36
bench --parts step --output "$out/h200_eager" --methods iCT "ACT on CT" --precisions fp32 tf32 bf16 --batch_sizes 80 256
bench --parts step --output "$out/h200_eager_large" $large --methods iCT --precisions fp32 tf32 bf16 --batch_sizes 256 1024
bench --parts step --output "$out/h200_compiled_1024" --methods iCT --precisions bf16 tf32 --batch_sizes 1024 --compiled
bench --parts sampling data checkpoint start --output "$out/h200_rest" --sampling_batches 1 64 1024
