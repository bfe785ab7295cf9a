#!/usr/bin/env bash
# A small real model learns arithmetic word problems on the CPU, in minutes.
# Every value is in configs/demo.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh" configs/demo.yaml "$@"

# The data, and how much of the training set the test sets contain.
run python -m dataset.prepare "${config[@]}"
# One calibration for all ranks and subspaces of a sweep.
launch calibrate.py "${config[@]}" "${force[@]}"
# Every run of the sweep, each in a folder of its own.
sweep train.py "${force[@]}"
# Held-out problems, by the base model and every run, on the same engines.
run python -m eval "${config[@]}" "${force[@]}" || failed=$?
# The tables and figures of all runs, failed ones among them.
run python -m eval.report "${config[@]}"
exit "$failed"
