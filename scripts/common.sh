# Shared by every run.sh: `experiment CONFIG [overrides]` runs all stages and ends with the results table.
#   --dry-run   print each command instead of running it       --force   redo what is complete
#   --jobs=N    train N runs of a sweep at a time, each on a GPU of its own
#   --config=configs/qwen3-8b/metamath.yaml     another model's config, or your own
# ASTRA_PROCESSES=N starts N training processes (default: one a GPU); HOSTFILE=file spreads them over nodes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${ASTRA_VENV:-$PWD/.venv}
export PATH="$venv/bin:$PATH"
trap 'stop 130' INT
trap 'stop 143' TERM HUP

stop() { # Ctrl-C or a scheduler's signal ends the whole tree, and nothing else
    trap '' INT TERM HUP
    local stage
    stage=$(jobs -pr) # the command under way, which may not yet lead its group
    [ -z "$stage" ] || { { kill -TERM -- "-$stage" || kill -TERM "$stage"; } 2>/dev/null && wait "$stage"; } || true
    exit "$1"
}

run() { # print the command in a dry run, otherwise run it in a process group of its own, so that a signal is seen now
    if [ "$dry_run" = 1 ]; then printf '%q ' "$@"; echo; return; fi
    setsid "$@" </dev/null &
    wait "$!"
}

gpus() { # the GPUs that may be used here, a line each
    local found
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -v -e '^-' -e '^$' || true
    elif found=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null); then echo "$found"; fi
}

launch() { # start a script on all processes: deepspeed over nodes, torchrun over GPUs, else plain python
    local processes=${ASTRA_PROCESSES:-$(gpus | wc -l)}
    if [ -n "${HOSTFILE:-}" ]; then
        run deepspeed --hostfile "$HOSTFILE" --no_local_rank "$@"
    elif [ "$processes" -gt 1 ]; then # a checkpoint may take longer than the 30 s torchrun leaves after a signal
        run torchrun --standalone --nproc-per-node "$processes" --shutdown-timeout 110 -- "$@"
    else
        run python "$@"
    fi
}

experiment() {
    local config=$1 word flags=() force=() dry_run=0 jobs=1 failed=0 plan
    for word in "${@:2}"; do
        case $word in
            --dry-run) dry_run=1 ;;
            --force) force=(--force) ;;
            --config=*) config=${word#*=} ;;
            --jobs=*) jobs=${word#*=} ;;
            --help | -h) sed -n 1,5p scripts/common.sh; [ ! -x "$venv/bin/python" ] || python -m scripts.preflight --help; exit ;;
            *) flags+=("$word") ;;
        esac
    done
    [[ $jobs =~ ^[1-9][0-9]*$ ]] || refuse "--jobs: must be a number of runs, not '$jobs'"
    [ -z "$(gpus)" ] || [ "$jobs" -le "$(gpus | wc -l)" ] || refuse "--jobs: $jobs runs need as many GPUs, not $(gpus | wc -l)"
    [ "$dry_run" = 1 ] || bash scripts/setup.sh
    [ -x "$venv/bin/python" ] || refuse "--dry-run: call scripts/setup.sh first, it has a lot to install"
    # Checks every stage before the first starts, and writes the config of each run of the sweep.
    plan=$(python -m scripts.preflight --config "$config" "${flags[@]}")
    run python -m dataset.prepare --config "$config" "${flags[@]}"
    launch calibrate.py --config "$config" "${flags[@]}" "${force[@]}"
    train_all "$plan"
    run python -m eval --config "$config" "${flags[@]}" "${force[@]}" || failed=$?
    run python -m eval.report --config "$config" "${flags[@]}"
    exit "$failed"
}

train_all() { # one run after another, or `jobs` at a time on a GPU each; a failed run does not stop the rest
    local file files
    mapfile -t files <<<"$1"
    if [ "$jobs" -gt 1 ] && [ "$dry_run" = 0 ]; then
        ASTRA_GPUS=$(gpus) run xargs -a <(echo "$1") -d '\n' -P "$jobs" --process-slot-var=SLOT -I FILE bash -c '
            export CUDA_VISIBLE_DEVICES=$(sed -n "$((SLOT + 1))p" <<<"$ASTRA_GPUS")
            exec python train.py --config "$@"' train FILE "${force[@]}" || failed=2
        return
    fi
    for file in "${files[@]}"; do launch train.py --config "$file" "${force[@]}" || failed=$?; done
}

refuse() { echo "error: $1" >&2; exit 2; }
