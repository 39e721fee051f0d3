#!/usr/bin/env bash
# Makes everything that is bundled with `tadiff-rt demo`, from nothing: simulated patients, the model
# trained on them, and a case that the model has not seen. About 80 minutes on two cores; --precision bf16 wants a processor with AMX.
#   bash benchmarks/make_demo_data.sh [WORK]      WORK: folder for cohort, cache and run; default work/
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${1:-work}
BIN=.venv/bin
# Training maps and unmaps large activations at every layer; keeping them halves the page faults.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000

[ -d "$WORK/train" ] || $BIN/tadiff-train phantom "$WORK/train" --patients 120 --size 96 --seed 101 --jobs 2
[ -d "$WORK/test" ] || $BIN/tadiff-train phantom "$WORK/test" --patients 32 --size 96 --seed 202 --jobs 2 --counterfactuals
[ -f "$WORK/run/model.json" ] || $BIN/tadiff-train fit --data "$WORK/train" -o "$WORK/run" \
    --cache "$WORK/cache" --steps 6500 --batch-size 4 --learning-rate 5e-4 --loss velocity \
    --timesteps forecast --start-lam -2.25 --precision bf16 --model-channels 64 --channel-mult 1,1,1,2 \
    --val-fraction 0 --test-fraction 0 --threads 1 --name demo \
    --weights-licence "Apache-2.0; trained on simulated images derived from MNI152 (see NOTICE)" \
    --trained-on "120 simulated gliomas in deformed MNI152 anatomy (tadiff-train phantom --patients 120 --size 96 --seed 101); no real patient"
$BIN/tadiff-export "$WORK/run" -o tadiff_rt/data/demo.tadiff --overwrite
$BIN/python -m benchmarks.demo_case "$WORK/test" tadiff_rt/data/demo_case
