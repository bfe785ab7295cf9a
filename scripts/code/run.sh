#!/usr/bin/env bash
# LLaMA-2-7B learns CodeFeedback and is scored on HumanEval and MBPP.
# Every value is in configs/code.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh" configs/code.yaml "$@"

# The data, and how much of the training set the test sets contain.
run python -m dataset.prepare "${config[@]}"
# One calibration for all ranks and subspaces of a sweep.
launch calibrate.py "${config[@]}" "${force[@]}"
# Every run of the sweep, each in a folder of its own.
sweep train.py "${force[@]}"
# HumanEval and MBPP, all runs on the same engines; the programs run in a sandbox.
run python -m eval "${config[@]}" "${force[@]}" || failed=$?
# The tables and figures of all runs, failed ones among them.
run python -m eval.report "${config[@]}"
exit "$failed"
