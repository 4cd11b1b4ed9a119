#!/bin/sh
# The first run on a GPU (docs/gpu.md): benchmarks/gpu_first.sh [--part N] [--wheels FOLDER] [--json FILE] [--seconds 540]
# Call it again until it says that nothing is to do. PYTHON names the interpreter.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" benchmarks/gpu_first.py "$@"
