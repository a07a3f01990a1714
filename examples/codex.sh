#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Codex CLI, unmodified:  npm i -g @openai/codex;  MARS_URL=... ./codex.sh "TASK"
# It sends its session id with each request.
set -euo pipefail
export CODEX_HOME="${CODEX_HOME:-$HOME/.codex-mars}"
mkdir -p "$CODEX_HOME"
cat > "$CODEX_HOME/config.toml" <<CONFIG
model = "${MARS_MODEL:-qwen3-coder-30b-a3b}"
model_provider = "mars"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.mars]
name = "MARS"
base_url = "${MARS_URL:-http://127.0.0.1:8000}/v1"
wire_api = "responses"
CONFIG
exec codex exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox "$1" </dev/null
