#!/usr/bin/env bash
# Parity, then timings, on a machine with a CUDA device. Needs what idol/ and its tests import (torch,
# numpy, scipy, opencv, pycocotools, pytest, hypothesis); no Ray, no network, no installed package.
# What it prints at the end is for docs/internals/performance.md.
#
#   make gpu                                  with the repository's environment
#   PYTHON=python3 benchmarks/gpu.sh          with another one
#   ORIGINAL=path                             also time the kernel of Deformable DETR, see rivals.py
#   COMMIT=...                                what stands in the tables where there is no git
#   STEPS=5500                                also train the tiny network, see tiny_training.py
#
# About five minutes on an H200; `python -m benchmarks.network --device cuda` has more modes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi

# A machine that is meant to have a GPU must not pass by skipping: no device is a failure.
export IDOL_REQUIRE_CUDA=1
"$PYTHON" -c 'import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"benchmarks/gpu.sh: torch {torch.__version__} finds no CUDA device here.")'

# Only the files that have a gpu test, and none of pipelines/: the others import what may be absent.
# The options of pyproject.toml that belong to plugins are left out for the same reason.
# What fails is told at the end: the others' time on such a machine is not thrown away.
failed=0
mapfile -t files < <(grep -rlE 'mark\.gpu' tests/ops tests/idol --include='test_*.py' | sort)
if [[ ${#files[@]} -gt 0 ]]; then
  "$PYTHON" -m pytest -m gpu -o addopts="--import-mode=importlib --strict-markers -ra" \
    --show-capture=no -p no:cacheprovider "${files[@]}" || failed=1
else
  echo "No test is marked gpu yet."
fi

run() {
  echo
  "$PYTHON" -m "$@" || failed=1
}

run benchmarks.ms_deform_attn --device cuda ${ORIGINAL:+--original "$ORIGINAL"}
run benchmarks.speed --device cuda --preset ytvis19_r50 --batch 32 --seconds 2
run benchmarks.speed --device cuda --videos 5 --batch 32 --seconds 1 --no-compiled
run benchmarks.network --device cuda --seconds 1 --batches 1 32 --types bfloat16 --modes eager
run benchmarks.criterion --device cuda
# Half an hour and more, so only when it is asked for.
if [[ -n "${STEPS:-}" ]]; then run benchmarks.tiny_training --device cuda --steps "$STEPS"; fi
exit "$failed"
