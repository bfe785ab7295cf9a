#!/usr/bin/env bash
# LLaMA-2-7B learns MetaMathQA and is scored on GSM8K and MATH.
# Every value is in configs/metamath.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh" configs/metamath.yaml "$@"

# The data, and how much of the training set the test sets contain.
run python -m dataset.prepare "${config[@]}"
# One calibration for all ranks and subspaces of a sweep.
launch calibrate.py "${config[@]}" "${force[@]}"
# Every run of the sweep, each in a folder of its own.
sweep train.py "${force[@]}"
# GSM8K and MATH, all runs on the same engines.
run python -m eval "${config[@]}" "${force[@]}" || failed=$?
# The tables and figures of all runs, failed ones among them.
run python -m eval.report "${config[@]}"
exit "$failed"
