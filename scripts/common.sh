# What every run.sh shares. `source scripts/common.sh CONFIG [overrides]` sets up, checks all stages and plans the runs.
#   --dry-run   print each command instead of running it       --force   redo what is complete
#   --jobs=N    train N runs of a sweep at a time, each on a GPU and a share of the cores, and evaluate with N engines
#   --config=configs/qwen3-8b/metamath.yaml     another model's config, or your own
# ASTRA_PROCESSES=N starts N training processes (default: one per GPU); HOSTFILE=file spreads them over nodes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${ASTRA_VENV:-$PWD/.venv}
export PATH="$venv/bin:$PATH"
dry_run=0 jobs=1 failed=0 force=() costs=() lock=
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
    [ -z "$lock" ] || printf 'process %s (%s) on %s, since %(%F %T)T,' "$!" "${*:1:3}" "$HOSTNAME" -1 >"$lock"
    wait "$!"
}

hold() { # keep others out of a folder; a stage that outlives this shell keeps it, as it inherits the descriptor
    exec 9>>"$1/.lock"
    flock -n 9 || refuse "$1: $(cat "$1/.lock") is at work here; wait for it, or stop it first"
    lock=$1/.lock
}

gpus() { # the GPUs that may be used here, one per line
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

sweep() { # start a script for every run, and for those that a ladder asks for then; a failed run does not stop the rest
    local started=
    while [ -n "$plan" ]; do
        mapfile -t runs <<<"$plan"
        wave "$@"
        [ "$dry_run" = 0 ] || break
        started+=$plan$'\n'
        plan=$(python -m scripts.preflight "${config[@]}" --next)
        plan=$(grep -vxFf <(printf %s "$started") <<<"$plan" || true) # what failed would fail again
    done
}

wave() { # start a script for each of `runs`, in turn or `jobs` at a time, on a GPU and a share of the cores each
    local file
    if [ "$jobs" -gt 1 ] && [ "$dry_run" = 0 ]; then
        ASTRA_GPUS=$(gpus) OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + jobs - 1) / jobs))} \
            run xargs -a <(printf '%s\n' "${runs[@]}") -d '\n' -P "$jobs" --process-slot-var=SLOT -I FILE \
            bash -c 'export CUDA_VISIBLE_DEVICES=$(sed -n "$((SLOT + 1))p" <<<"$ASTRA_GPUS"); exec python "$@"' \
            sweep "$1" --config FILE "${@:2}" || failed=2
        return
    fi
    for file in "${runs[@]}"; do launch "$1" --config "$file" "${@:2}" || failed=$?; done
}

refuse() { echo "error: $1" >&2; exit 2; }

[ $# -gt 0 ] || return 0
config=(--config "$1") # and the overrides: what every stage is given
for word in "${@:2}"; do
    case $word in
        --dry-run) dry_run=1 costs=(--costs) ;;
        --force) force=(--force) ;;
        --config=*) config[1]=${word#*=} ;;
        --jobs=*) jobs=${word#*=} ;;
        --help | -h) sed -n 1,5p scripts/common.sh; [ ! -x "$venv/bin/python" ] || python -m scripts.preflight --help; exit ;;
        *) config+=("$word") ;;
    esac
done
[[ $jobs =~ ^[1-9][0-9]*$ ]] || refuse "--jobs: must be a number of runs, not '$jobs'"
[ -z "$(gpus)" ] || [ "$jobs" -le "$(gpus | wc -l)" ] || refuse "--jobs: $jobs runs need as many GPUs, not $(gpus | wc -l)"
[ "$jobs" = 1 ] || config=("${config[@]:0:2}" "--eval.engines=$jobs" "${config[@]:2}")
[ "$dry_run" = 1 ] || bash scripts/setup.sh
[ -x "$venv/bin/python" ] || refuse "--dry-run: call scripts/setup.sh first, it has a lot to install"
if [ "$dry_run" = 0 ] && [ -n "$(gpus)" ]; then
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        refuse "torch can't use the GPUs that are here (is the driver older than its CUDA?); CUDA_VISIBLE_DEVICES= runs on the CPU"
fi
# Checks every stage, and writes a config for each run of the sweep; a dry run also says what they cost.
plan=$(python -m scripts.preflight "${config[@]}" "${costs[@]}" "${force[@]}")
[ "$dry_run" = 1 ] || hold "${plan%%$'\n'*}"
plan=$(tail -n +2 <<<"$plan")
