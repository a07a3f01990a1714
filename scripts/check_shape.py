# SPDX-License-Identifier: Apache-2.0
"""Checks of form that no linter has: licence line, lengths, the core's imports.

Prints one line per violation and exits with their number, at most 1.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPDX = "# SPDX-License-Identifier: Apache-2.0"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_POLICY_LINES = 120
POLICY_FOLDERS = ("policies", "admissions", "toolqueue")


def violations(path: Path) -> Iterator[str]:
    """Every rule that one Python file breaks, as ``file:line: what``."""
    name = path.relative_to(ROOT)
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if lines and SPDX not in lines[:2]:
        yield f"{name}:1: the first line must be {SPDX!r}"
    is_policy = path.parent.name in POLICY_FOLDERS and path.parent.parent.name == "core"
    limit = MAX_POLICY_LINES if is_policy else MAX_FILE_LINES
    if len(lines) > limit:
        yield f"{name}:{len(lines)}: {len(lines)} lines, at most {limit}: one noun per file"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = _code_lines(node)
            if num_lines > MAX_FUNCTION_LINES:
                yield (
                    f"{name}:{node.lineno}: {node.name}() has {num_lines} lines of code, "
                    f"at most {MAX_FUNCTION_LINES}: split it"
                )
        elif "src/mars/core/" in str(path):
            for module in _imported(node):
                if module not in sys.stdlib_module_names and module != "mars":
                    yield f"{name}: imports {module}: the core uses the standard library only"


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its length from ``def`` on, without the docstring."""
    num_lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        num_lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return num_lines


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.split(".")[0]]
    return []


def main() -> int:
    """Check every Python file of the project."""
    files = [
        path
        for folder in ("src", "tests", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    found = [line for path in files for line in violations(path)]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
