#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# opencode, unmodified:  npm i -g opencode-ai;  MARS_URL=... ./opencode.sh "TASK"
# It sends its session id with each request, also with that for a title.
set -euo pipefail
model="${MARS_MODEL:-qwen3-coder-30b-a3b}"
export OPENCODE_CONFIG="${OPENCODE_CONFIG:-$HOME/opencode-mars.json}" OPENCODE_DISABLE_AUTOUPDATE=1
export OPENCODE_DISABLE_MODELS_FETCH=1 OPENCODE_DISABLE_LSP_DOWNLOAD=1
cat > "$OPENCODE_CONFIG" <<CONFIG
{"provider": {"mars": {"npm": "@ai-sdk/openai-compatible", "name": "MARS",
  "options": {"baseURL": "${MARS_URL:-http://127.0.0.1:8000}/v1", "apiKey": "-"},
  "models": {"$model": {"name": "$model", "tool_call": true}}}},
 "permission": "allow", "share": "disabled", "autoupdate": false}
CONFIG
exec opencode run --model "mars/$model" "$1" </dev/null
