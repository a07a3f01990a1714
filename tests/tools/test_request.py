# SPDX-License-Identifier: Apache-2.0
"""The class of a call is what its duration depends on, not how it is wrapped."""

import pytest

from mars.tools.request import ToolRequest, tool_class


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("bash", "-c", "cd src && python -m pytest -q tests/x.py"), "bash:python pytest"),
        (("/bin/bash", "-lc", "FOO=1 timeout 30 make test"), "bash:make test"),
        (("bash", "-c", "grep -rn foo . | head -5"), "bash:grep"),
        (("bash", "-c", "cd /tmp; ls"), "bash:ls"),
        (("bash", "-c", "cd /tmp"), "bash:cd"),
        (("bash", "-c", "pip install x && pytest"), "bash:pytest"),
        (("sh", "-c", "echo 'unclosed"), "bash:echo"),
        (("git", "status"), "bash:git"),
        (("/usr/bin/python3", "-I", "-S", "/a/b/burn.py", "--cpu-s", "1"), "bash:python3 burn.py"),
        (("sudo", "-n", "apt-get", "install", "x"), "bash:apt-get"),
        (("env", "A=1"), "bash"),
        (("bash", "-c", "source s.sh && eval 'cd x && make -j' \\< /dev/null && pwd"), "bash:make"),
        (("bash", "-c", "eval"), "bash:eval"),
    ],
)
def test_commands_are_classed(argv: tuple[str, ...], expected: str) -> None:
    assert tool_class("bash", argv) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"argv": ()}, "argv"), ({"argv": ("x",), "timeout_s": 0.0}, "timeout_s")],
)
def test_impossible_requests_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ToolRequest(session_id="s", tool_call_id="c", tool_name="t", **fields)  # type: ignore[arg-type]
