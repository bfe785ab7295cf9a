#!/usr/bin/env bash
# CodeFeedback: calibrate -> train -> evaluate HumanEval and MBPP.
# Every value is in configs/code.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh"
experiment configs/code.yaml "$@"
