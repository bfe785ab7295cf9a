#!/usr/bin/env bash
# MetaMathQA: calibrate -> train -> evaluate GSM8K and MATH.
# Every value is in configs/metamath.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh"
experiment configs/metamath.yaml "$@"
