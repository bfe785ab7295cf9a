#!/usr/bin/env bash
# An encoder with a classification head learns a task of GLUE and is scored on its validation split.
#   bash scripts/nlu/run.sh TASK [overrides]     TASK: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte
# Every value is in configs/nlu.yaml and configs/nlu/TASK.yaml.
cd "$(dirname "$0")/../.."
if [ ! -f "configs/nlu/${1:-}.yaml" ]; then
    echo "usage: scripts/nlu/run.sh TASK [overrides]; tasks: $(cd configs/nlu && ls | sed 's/.yaml//' | paste -sd' ')" >&2
    exit 2
fi
source scripts/common.sh "configs/nlu/$1.yaml" "${@:2}"

# The data, and how much of the training set the test sets contain.
run python -m dataset.prepare "${config[@]}"
# One calibration for all ranks and subspaces of a sweep.
launch calibrate.py "${config[@]}" "${force[@]}"
# Every run of the sweep, each in a folder of its own.
sweep train.py "${force[@]}"
# The validation split, by every run.
run python -m eval "${config[@]}" "${force[@]}" || failed=$?
# The tables and figures of all runs, failed ones among them.
run python -m eval.report "${config[@]}"
exit "$failed"
