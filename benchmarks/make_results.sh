#!/usr/bin/env bash
# Forecasts of 32 simulated patients that the bundled model has not seen: docs/results.md, .json
# and a page of figures, .png. Half an hour on two cores, with fitted growth models.
#   bash benchmarks/make_results.sh [WORK]
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${1:-work}
[ -d "$WORK/test" ] || .venv/bin/tadiff-train phantom "$WORK/test" --patients 32 --size 96 --seed 202 \
    --jobs 2 --counterfactuals
.venv/bin/tadiff-train evaluate --engine tadiff_rt/data/demo.tadiff --data "$WORK/test" \
    -o docs/results.md --samples 5 --steps 10 --max-slices 3 --counterfactuals --coherence 0.9 --jobs 2 \
    --population "simulated patients of another seed than training (tadiff-train phantom --patients 32 --size 96 --seed 202)"
