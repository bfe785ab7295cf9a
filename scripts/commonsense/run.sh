#!/usr/bin/env bash
# LLaMA-2-7B learns commonsense_170k and is scored on eight multiple-choice tasks.
# Every value is in configs/commonsense.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh" configs/commonsense.yaml "$@"

# The data, and how much of the training set the test sets contain.
run python -m dataset.prepare "${config[@]}"
# One calibration for all ranks and subspaces of a sweep.
launch calibrate.py "${config[@]}" "${force[@]}"
# Every run of the sweep, each in a folder of its own.
sweep train.py "${force[@]}"
# The eight tasks, all runs on the same engines.
run python -m eval "${config[@]}" "${force[@]}" || failed=$?
# The tables and figures of all runs, failed ones among them.
run python -m eval.report "${config[@]}"
exit "$failed"
