#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Cline, unmodified:  npm i -g cline;  MARS_URL=... ./cline.sh "TASK"
set -euo pipefail
export CLINE_DATA_DIR="${CLINE_DATA_DIR:-$HOME/.cline-mars}"
cline auth --provider openai --apikey - --modelid "${MARS_MODEL:-qwen3-coder-30b-a3b}" \
    --baseurl "${MARS_URL:-http://127.0.0.1:8000}/v1" </dev/null
exec cline --auto-approve true "$1" </dev/null
