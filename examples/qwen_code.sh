#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Qwen Code, unmodified:  npm i -g @qwen-code/qwen-code;  MARS_URL=... ./qwen_code.sh "TASK"
# It sends no session id: MARS knows it by the tool-call ids that it echoes.
set -euo pipefail
export OPENAI_API_KEY=- OPENAI_BASE_URL="${MARS_URL:-http://127.0.0.1:8000}/v1"
export OPENAI_MODEL="${MARS_MODEL:-qwen3-coder-30b-a3b}" QWEN_CODE_DISABLE_UPDATE_CHECK=1
mkdir -p "$HOME/.qwen"
cat > "$HOME/.qwen/settings.json" <<CONFIG
{"general": {"disableAutoUpdate": true, "disableUpdateNag": true},
 "privacy": {"usageStatisticsEnabled": false}, "telemetry": {"enabled": false}}
CONFIG
exec qwen --auth-type openai --yolo -p "$1" </dev/null
