#!/usr/bin/env bash
# Commonsense reasoning: calibrate -> train -> evaluate the eight tasks.
# Every value is in configs/commonsense.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh"
experiment configs/commonsense.yaml "$@"
