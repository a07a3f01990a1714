#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Resolves requirements/agents-*.lock anew: the agents that `mars bench agents` installs, one
# file an environment, because their own pins exclude one another.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
    local out="requirements/agents-$1.lock"
    shift
    printf '%s\n' "$@" | .venv/bin/uv pip compile --quiet --no-header --no-annotate \
        --python-version 3.12 --output-file "$out.new" -
    { printf '# SPDX-License-Identifier: Apache-2.0\n# %s\n' "$*" && cat "$out.new"; } > "$out"
    rm "$out.new"
}

# MARS itself goes beside OpenHands: the integration asks its tool server for slots.
lock openhands openhands-sdk openhands-tools msgspec
lock mini mini-swe-agent mcp
lock aider aider-chat
lock sdks openai anthropic litellm langchain langchain-openai openai-agents \
    'pydantic-ai-slim[openai]' 'smolagents[openai]'
