#!/usr/bin/env bash
# Forecasts of 32 simulated patients that the bundled model has not seen: docs/results.md and .json.
#   bash benchmarks/make_results.sh [WORK]
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${1:-work}
[ -d "$WORK/test" ] || .venv/bin/tadiff-train phantom "$WORK/test" --patients 32 --size 96 --seed 202 \
    --jobs 2 --counterfactuals
.venv/bin/tadiff-train evaluate --engine tadiff_rt/data/demo.tadiff --data "$WORK/test" \
    -o docs/results.md --samples 4 --max-slices 4 --counterfactuals \
    --population "simulated patients of another seed than training (tadiff-train phantom --patients 32 --size 96 --seed 202)"
