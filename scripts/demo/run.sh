#!/usr/bin/env bash
# A small real model learns arithmetic word problems on the CPU: calibrate -> train -> evaluate, in minutes.
# Every value is in configs/demo.yaml; any of them can be overridden here: --method.rank=64, --sweep.method.rank=[8,16].
source "$(dirname "$0")/../common.sh"
experiment configs/demo.yaml "$@"
