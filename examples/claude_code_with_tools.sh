#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Claude Code, unmodified, its commands on slots of the tool runtime:  ./claude_code_with_tools.sh "TASK"
# Beside Claude Code, install mars-serving. `mars serve` names MARS_TOOLS at its start; without it
# commands are bounded all the same, and MARS_GATEWAY hears of them. Their session is Claude Code's.
set -euo pipefail
export CLAUDE_CODE_SHELL_PREFIX="$(command -v mars-shell)"
export MARS_GATEWAY="${MARS_URL:-http://127.0.0.1:8000}"
exec "$(dirname "$0")/claude_code.sh" "$1"
