# Shared by every run.sh: `experiment CONFIG [overrides]` runs all stages and ends with the results table.
#   --dry-run   print each command instead of running it       --force   redo what is complete
#   --jobs=N    train N runs of a sweep at a time, one GPU each
#   --config=configs/qwen3-8b/metamath.yaml     another model's config, or your own
# ASTRA_PROCESSES=N starts N training processes (default: one a GPU); HOSTFILE=file spreads them over nodes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'trap "" INT TERM; kill -TERM 0 2>/dev/null; wait; exit 130' INT TERM # Ctrl-C stops the whole tree

gpus() { nvidia-smi -L 2>/dev/null | grep -c . || true; }

run() { # print the command in a dry run, otherwise run it
    if [ "$dry_run" = 1 ]; then echo "$*"; else "$@"; fi
}

launch() { # start a script on all processes: deepspeed over nodes, torchrun over GPUs, else plain python
    local processes=${ASTRA_PROCESSES:-$(gpus)}
    if [ -n "${HOSTFILE:-}" ]; then
        run deepspeed --hostfile "$HOSTFILE" --no_local_rank "$@"
    elif [ "${processes:-0}" -gt 1 ]; then
        run torchrun --standalone --nproc-per-node "$processes" -- "$@" # torchrun has a --run of its own
    else
        run python "$@"
    fi
}

experiment() {
    local config=$1 word flags=() force=() dry_run=0 jobs=1
    for word in "${@:2}"; do
        case $word in
            --dry-run) dry_run=1 ;;
            --force) force=(--force) ;;
            --config=*) config=${word#*=} ;;
            --jobs=*) jobs=${word#*=} ;;
            --help | -h) exec bash -c 'sed -n "2,6p" scripts/common.sh; exec python -m utils.preflight --help' ;;
            *) flags+=("$word") ;;
        esac
    done
    bash scripts/setup.sh
    export PATH="${ASTRA_VENV:-$PWD/.venv}/bin:$PATH"
    # Checks every stage before the first starts, and writes the config of each run of the sweep.
    local plan
    plan=$(python -m utils.preflight --config "$config" "${flags[@]}")
    run python -m dataset.prepare --config "$config" "${flags[@]}"
    launch calibrate.py --config "$config" "${flags[@]}" "${force[@]}"
    train_all "$plan"
    run python -m eval --config "$config" "${flags[@]}" "${force[@]}"
    run python -m eval.report --config "$config" "${flags[@]}"
    exit "$failed"
}

train_all() { # one run after another, or `jobs` at a time on a GPU each; a failed run does not stop the rest
    failed=0
    local k=0 file pids=()
    while read -r file; do
        if [ "$jobs" -gt 1 ]; then
            (
                [ "$(gpus)" = 0 ] || export CUDA_VISIBLE_DEVICES=$((k % jobs))
                ASTRA_PROCESSES=1 launch train.py --config "$file" "${force[@]}"
            ) &
            pids+=($!)
            k=$((k + 1))
            [ $((k % jobs)) != 0 ] || { await "${pids[@]}"; pids=(); }
        else
            launch train.py --config "$file" "${force[@]}" || failed=$?
        fi
    done <<<"$1"
    await "${pids[@]}"
}

await() {
    local pid
    for pid in "$@"; do wait "$pid" || failed=$?; done
}
