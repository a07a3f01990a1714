#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# aider, unmodified:  pip install aider-chat;  MARS_URL=... ./aider.sh "TASK"
# It sends no session id and calls no tools: MARS knows it by the replies that it echoes.
set -euo pipefail
export OPENAI_API_KEY=- OPENAI_API_BASE="${MARS_URL:-http://127.0.0.1:8000}/v1"
export LITELLM_LOCAL_MODEL_COST_MAP=True AIDER_ANALYTICS=false AIDER_CHECK_UPDATE=false
exec aider --model "openai/${MARS_MODEL:-qwen3-coder-30b-a3b}" --edit-format whole --yes-always \
    --no-git --no-show-model-warnings --no-pretty --no-detect-urls --map-tokens 0 \
    --auto-test --test-cmd "${TEST_COMMAND:-true}" --message "$1"
