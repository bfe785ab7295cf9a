#!/usr/bin/env bash
# GLUE: calibrate -> train an encoder with a classification head -> score its validation split.
#   bash scripts/nlu/run.sh TASK [overrides]     TASK: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte
# Every value is in configs/nlu.yaml and configs/nlu/TASK.yaml.
source "$(dirname "$0")/../common.sh"
if [ ! -f "configs/nlu/${1:-}.yaml" ]; then
    echo "usage: scripts/nlu/run.sh TASK [overrides]; tasks: $(cd configs/nlu && ls | sed 's/.yaml//' | paste -sd' ')" >&2
    exit 2
fi
experiment "configs/nlu/$1.yaml" "${@:2}"
