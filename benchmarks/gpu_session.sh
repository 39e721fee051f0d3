#!/usr/bin/env bash
# Everything that a GPU can tell about this project, in one call of less than nine minutes: GPU
# tests, what the hardware reaches, every kernel, the network, the ensemble of a head, a profile.
#
#   bash benchmarks/gpu_session.sh [OUT]      OUT: rows and logs; default ./gpu_results
#
# Needs Python with torch, triton, numpy, onnx, onnxscript, onnxruntime, pytest, typer, rich and
# safetensors; no network, no installation: the repository as it lies there is what runs.
#
#   WHEELS=DIR      installs DIR/*.whl into a temporary folder first (nibabel, pydantic)
#   STAGES="..."    only these of: environment tests alone export roofline kernels network ensemble monai profile;
#                   each may then take all the time there is
#   WORK=DIR        keeps bundles and compiled code for the next call; default: a temporary folder
#   TOTAL=525       seconds after which no stage goes on
#   COMMIT=...      named in rows, where there is no git
#   PYTHON=python3
#   DEVICE=cpu QUICK=1   a dry run: every stage, tiny, on a machine without a GPU
#
# Each stage has its own time and log, and one that fails does not stop the next. gpu.jsonl holds
# the rows; with those of an earlier call in OUT, new ones are added.
set -uo pipefail
OUT=$(mkdir -p "${1:-gpu_results}" && cd "${1:-gpu_results}" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
export DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-0} PYTHONUNBUFFERED=1
export SESSION=${SESSION:-$(date -u +%Y-%m-%dT%H:%M:%SZ)}
PYTHON=${PYTHON:-python3}
TOTAL=${TOTAL:-525}
UNLIMITED=${STAGES:+yes}
[ "$QUICK" = 0 ] || UNLIMITED=yes # a dry run tests the stages, not the machine
STAGES=${STAGES:-environment tests alone export roofline kernels network ensemble monai profile}
if [ -z "${WORK:-}" ]; then
    WORK=$(mktemp -d) || exit 2
    trap 'rm -rf "$WORK"' EXIT
fi
SITE=$WORK/site
BUNDLES=$WORK/bundles
SUMMARY=$OUT/summary.txt
mkdir -p "$SITE" "$BUNDLES"
printf 'session %s\n%-12s %7s  %s\n' "$SESSION" stage seconds "exit code" >"$SUMMARY"

# The repository as an installed package, without installing it.
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
        --target "$SITE" "$WHEELS"/*.whl || exit 2
fi
ln -sfn "$PWD/kernels" "$SITE/tadiff_kernels"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
mkdir -p "$SITE/tadiff-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: tadiff\nVersion: %s\n' "$version" \
    >"$SITE/tadiff-$version.dist-info/METADATA"
export PYTHONPATH=$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}
export TADIFF_CACHE=$WORK/cache TRITON_CACHE_DIR=$WORK/triton TORCHINDUCTOR_CACHE_DIR=$WORK/inductor

# stage NAME SECONDS LOG COMMAND...: the command, for so long at most and never past TOTAL
stage() {
    local name=$1 limit=$2 log=$OUT/$3 start=$SECONDS left=$((TOTAL - SECONDS)) code=0
    shift 3
    case " $STAGES " in *" $name "*) ;; *) return ;; esac
    [ -n "$UNLIMITED" ] || ((limit > left)) && limit=$left
    if ((limit < 5)); then
        printf '%-12s %7s  %s\n' "$name" 0 "no time left" >>"$SUMMARY"
        return
    fi
    printf '\n== %s\n' "$name" >>"$log"
    DEADLINE=$(($(date +%s) + limit - 3)) timeout -k 5 "$limit" "$@" >>"$log" 2>&1 || code=$?
    printf '%-12s %7s  %s\n' "$name" $((SECONDS - start)) "$code" >>"$SUMMARY"
}

# Stages longer than a line; exported, for the bash that timeout starts.
environment() {
    nvidia-smi && nvidia-smi -q -d CLOCK,POWER,PERFORMANCE,TEMPERATURE,MEMORY
    "$PYTHON" -c 'from benchmarks.harness import hardware, versions; print(hardware(), versions())'
}
tests() { # those marked gpu; warnings of other versions than the project's own are no faults
    local parallel=() files
    "$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n 4 --dist loadfile)
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
    "$PYTHON" -m pytest -m gpu -v --tb=short --durations=10 -p no:cacheprovider \
        -o filterwarnings=default "${parallel[@]}" "${ALONE[@]/#/--deselect=}" "${files[@]}"
}
alone() { # those that measure time or the memory of the whole device
    "$PYTHON" -m pytest -v --tb=short -p no:cacheprovider -o filterwarnings=default "${ALONE[@]}"
}
profile() { # without ncu the same calls, to nobody
    local ncu=()
    command -v ncu && ncu=(ncu --clock-control none --profile-from-start off
        --target-processes all --section SpeedOfLight --section MemoryWorkloadAnalysis
        --section Occupancy --section LaunchStats)
    "${ncu[@]}" "$PYTHON" -m benchmarks.gpu_profile "$OUT"
}
ALONE=(tests/benchmarks/test_gpu_floor.py::test_time_is_that_of_the_device
    tests/rt/test_device_graph.py::test_gpu_memory_is_planned_and_bounded)
export -f environment profile
export PYTHON OUT

stage environment 30 environment.log bash -c environment
# Compiling and certifying bundles takes processors, tests take the GPU, and neither is timed.
stage export 120 export.log "$PYTHON" -m benchmarks.gpu_bundle "$BUNDLES" &
exporting=$!
stage tests 120 tests.log bash -c "$(declare -p ALONE); $(declare -f tests); tests"
wait "$exporting"
stage alone 20 tests.log bash -c "$(declare -p ALONE); $(declare -f alone); alone"
stage roofline 30 benchmarks.log "$PYTHON" -m benchmarks.gpu_roofline "$OUT"
stage kernels 110 benchmarks.log "$PYTHON" -m benchmarks.gpu_kernels "$OUT"
stage network 150 benchmarks.log "$PYTHON" -m benchmarks.gpu_network "$OUT"
stage ensemble 90 benchmarks.log "$PYTHON" -m benchmarks.gpu_ensemble "$OUT" "$BUNDLES"
stage monai 60 benchmarks.log "$PYTHON" -m benchmarks.gpu_monai "$OUT"
stage profile 60 profile.log bash -c profile

for log in "$OUT"/*.log; do # what is carried home is limited
    if [ "$(wc -c <"$log")" -gt 15000000 ]; then
        tail -c 15000000 "$log" >"$log.end" && mv "$log.end" "$log"
    fi
done
"$PYTHON" -m benchmarks.gpu_table "$OUT/gpu.jsonl"
cat "$SUMMARY"
awk 'NR > 2 && $3 != "0" { failed = 1 } END { exit failed }' "$SUMMARY"
