#!/bin/sh
# A virtual environment for the peer of the evaluation benchmark: lm-eval 0.4.13 with its own transformers backend, on a CPU build of torch.
# Usage: benchmarks/peers.sh [DIRECTORY]     (default: .venv-lm-eval beside this file)
set -eu
place="${1:-$(dirname "$0")/.venv-lm-eval}"
"${PYTHON:-python3}" -m venv "$place"
"$place/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 "lm_eval[hf]==0.4.13" transformers==5.23.0
"$place/bin/lm_eval" --help >/dev/null
"$place/bin/python" -m pip list --disable-pip-version-check | grep -i -E '^(torch|transformers|lm_eval|tokenizers|datasets|accelerate) '
