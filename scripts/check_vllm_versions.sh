#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The plug-in on every supported vLLM: the same fixed run must give the same steps and
# completion times, and every feature that needs no model must pass its tests.
#
#     make versions
#     VERSIONS="0.30.0 0.33.0" TESTS="" scripts/check_vllm_versions.sh [CACHE_DIR]
#
# Needs the environment of `make install`. Fetches each official wheel once and unpacks its
# Python part, which runs without a GPU on the emulated platform. TESTS="" leaves the fixed
# run alone; without a version named, the newest release there is is tried too.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${1:-$HOME/.cache/mars-vllm}
python=${PYTHON:-.venv/bin/python}
tests=${TESTS-tests/engine/vllm/test_features.py tests/engine/vllm/test_features_shapes.py
  tests/engine/vllm/test_features_connector.py tests/engine/vllm/test_compat.py}

newest() {
  "$python" -m pip --quiet index versions vllm 2>/dev/null | sed -n '1s/^vllm (\(.*\))$/\1/p' || true
}

fetch() {  # VERSION FOLDER
  rm -rf "$2.new" && mkdir -p "$2.new/wheels"
  "$python" -m pip --quiet download --no-deps --only-binary :all: \
    -d "$2.new/wheels" "vllm==$1" orjson
  for wheel in "$2.new"/wheels/*.whl; do
    # Native code of vLLM is for GPUs and of no use here; orjson is needed from 0.33 on.
    "$python" - "$wheel" "$2.new" <<'PYTHON'
import sys, zipfile
wheel, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    native = "/vllm-" in wheel
    archive.extractall(folder, [n for n in archive.namelist() if not (native and n.endswith(".so"))])
PYTHON
  done
  rm -rf "$2.new/wheels"
  mv "$2.new" "$2"
}

versions=${VERSIONS:-$(printf '%s\n' 0.30.0 0.31.0 0.33.0 $(newest) | sort -Vu)}
status=0
table=$(printf '%-10s %-22s %s' vLLM 'fixed run' 'feature tests')
for version in $versions; do
  folder=$cache/v$version
  [[ -d $folder/vllm ]] || { echo "==> vLLM $version: fetching the wheel" >&2; fetch "$version" "$folder"; }
  echo "==> vLLM $version" >&2
  # Imported from the folder in front of the installed build, whatever that is.
  export MARS_EMULATE=1 PYTHONPATH="$folder:src:scripts"
  run=differs passed='not asked for'
  if "$python" -W ignore scripts/golden_run.py 2>"$folder.log" |
    diff tests/engine/vllm/golden.json - >&2; then
    run='the same'
  else
    status=1
  fi
  if [[ -n $tests ]]; then
    # shellcheck disable=SC2086 -- several files
    "$python" -m pytest -q -p no:cacheprovider $tests >"$folder.tests.log" 2>&1 || status=1
    passed=$(tail -n 1 "$folder.tests.log")
  fi
  table+=$'\n'$(printf '%-10s %-22s %s' "$version" "$run" "$passed")
done
printf '%s\n' "$table"
((status == 0)) || echo "logs: $cache/v*.log" >&2
exit $status
