#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Claude Code, unmodified:  npm i -g @anthropic-ai/claude-code;  MARS_URL=... ./claude_code.sh "TASK"
# It sends its session id, and those of its sub-agents, with each request.
set -euo pipefail
export ANTHROPIC_BASE_URL="${MARS_URL:-http://127.0.0.1:8000}" ANTHROPIC_API_KEY=-
export ANTHROPIC_MODEL="${MARS_MODEL:-qwen3-coder-30b-a3b}"
export ANTHROPIC_SMALL_FAST_MODEL="$ANTHROPIC_MODEL" CLAUDE_CODE_MAX_OUTPUT_TOKENS=8192
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 DISABLE_TELEMETRY=1
exec claude -p "$1" --allowedTools "Bash" "Write" "Edit" "Read" --permission-mode acceptEdits
