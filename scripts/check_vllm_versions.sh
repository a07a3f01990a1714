#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The same fixed run on every supported vLLM: steps and completion times must be equal.
#
#     scripts/check_vllm_versions.sh [CACHE_DIR]
#
# Needs the environment of `make install`. Fetches each official wheel once and unpacks its
# Python part, which runs without a GPU on the emulated platform.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${1:-$HOME/.cache/mars-vllm}
python=${PYTHON:-.venv/bin/python}
versions=${VERSIONS:-0.30.0 0.31.0 0.33.0}
status=0
for version in $versions; do
  folder=$cache/v$version
  if [[ ! -d $folder/vllm ]]; then
    rm -rf "$folder.new" && mkdir -p "$folder.new/wheels"
    "$python" -m pip --quiet download --no-deps --only-binary :all: \
      -d "$folder.new/wheels" "vllm==$version" orjson
    for wheel in "$folder.new"/wheels/*.whl; do
      # Native code of vLLM is for GPUs and of no use here; orjson is needed from 0.33 on.
      skip=(); [[ $wheel == */vllm-* ]] && skip=(-x '*.so')
      unzip -q "$wheel" -d "$folder.new" "${skip[@]}"
    done
    rm -rf "$folder.new/wheels"
    mv "$folder.new" "$folder"
  fi
  # Imported from the folder in front of the installed build, whatever that is.
  if MARS_EMULATE=1 PYTHONPATH="$folder:src:scripts" "$python" -W ignore scripts/golden_run.py \
    2>"$folder.log" | diff tests/engine/vllm/golden.json - ; then
    echo "vLLM $version: the same run"
  else
    echo "vLLM $version: differs from tests/engine/vllm/golden.json (log: $folder.log)"
    status=1
  fi
done
exit $status
