#!/usr/bin/env bash
# On a CUDA machine: calibrate a LLaMA-2-7B-shaped model with random weights (nothing is downloaded), 256 x 512 tokens,
# rank 128, and time the plain implementation on 2 of its layers beside it. Wanted: under 60 s and under 35 GiB.
# Needs torch, transformers, peft and safetensors. Writes benchmarks/results/calibration-<device>.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
nvidia-smi -L >/dev/null 2>&1 || { echo "error: benchmarks/gpu.sh needs an NVIDIA GPU" >&2; exit 2; }

common=(--shape 7b --dtype bfloat16 --device cuda --tokens 131072 --length 512 --batch-size 8 --rank 128 --json)
whole=$(python benchmarks/calibration.py "${common[@]}" --spectrum ends --repeats 1 --no-plain | tail -1)
full=$(python benchmarks/calibration.py "${common[@]}" --spectrum full --repeats 1 --no-plain --layers 2 | tail -1)
plain=$(python benchmarks/calibration.py "${common[@]}" --spectrum ends --repeats 1 --layers 2 | tail -1)

python - "$whole" "$full" "$plain" <<'PYTHON'
import json, subprocess, sys

whole, full, plain = map(json.loads, sys.argv[1:])
seconds = whole["seconds"]
result = {
    "command": "bash benchmarks/gpu.sh",
    "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    "device": whole["device"],
    "total_seconds": sum(seconds.values()),
    "peak_gib": whole["peak_bytes"] / 2**30,
    "7b, ends of the spectra": whole,
    "2 layers, full spectra": full,
    "2 layers, beside the plain implementation": plain,
}
name = whole["device"].lower().replace(" ", "-")
with open(f"benchmarks/results/calibration-{name}.json", "w") as file:
    json.dump(result, file, indent=2)
print(json.dumps({key: result[key] for key in ("device", "total_seconds", "peak_gib")}))
PYTHON
