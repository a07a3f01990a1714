#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# mini-swe-agent, unmodified:  pip install mini-swe-agent mcp;  MARS_URL=... ./mini_swe_agent.sh "TASK"
# It sends no session id: MARS knows it by the tool-call ids that it echoes.
set -euo pipefail
export MSWEA_CONFIGURED=true MSWEA_SILENT_STARTUP=1 MSWEA_COST_TRACKING=ignore_errors
export LITELLM_LOCAL_MODEL_COST_MAP=True OPENAI_API_KEY=-
export OPENAI_API_BASE="${MARS_URL:-http://127.0.0.1:8000}/v1"
exec mini -y --exit-immediately -l 0 -t "$1" \
    -m "openai/${MARS_MODEL:-qwen3-coder-30b-a3b}"
