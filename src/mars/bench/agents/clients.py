# SPDX-License-Identifier: Apache-2.0
"""The agents that are tried, and how each is installed, in an environment of its own.

What is started is the agent's example (``examples/``): what the table says holds for what a
user copies from there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[4]
"""The repository: examples and locks are not part of the installed package."""
CACHE = ROOT / ".agents"


class AgentError(RuntimeError):
    """An agent cannot be installed or started; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Client:
    """One agent.

    Attributes:
        name: of its example, without the ending.
        title: as the table calls it.
        api: what it speaks.
        environment: a lock (``requirements/agents-NAME.lock``), or ``npm:PACKAGE@VERSION``.
        package: whose version the table shows.
        calls_tools: False for one that only edits text.
    """

    name: str
    title: str
    api: str
    environment: str
    package: str
    calls_tools: bool = True

    @property
    def example(self) -> Path:
        """The file that starts it."""
        return next((ROOT / "examples").glob(f"{self.name}.*"))

    @property
    def folder(self) -> Path:
        """Its environment."""
        return CACHE / self.environment.removeprefix("npm:").replace("/", "-").lstrip("@")

    @property
    def bin(self) -> Path:
        """Where its commands are."""
        is_npm = self.environment.startswith("npm:")
        return self.folder / ("node_modules/.bin" if is_npm else "bin")

    @property
    def version(self) -> str:
        """The version that is pinned."""
        if self.environment.startswith("npm:"):
            return self.environment.rpartition("@")[2]
        for line in _lock(self.environment).read_text(encoding="utf-8").splitlines():
            name, _, version = line.partition("==")
            if name == self.package:
                return version.partition(" ")[0]
        return "?"

    def is_installed(self) -> bool:
        """Whether :meth:`install` has come to its end."""
        return (self.folder / ".installed").exists()

    def install(self) -> None:
        """Install it, unless it is.

        Raises:
            AgentError: the registry refuses, or what is needed for it is missing here.
        """
        if self.is_installed():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        install = _install_npm if self.environment.startswith("npm:") else _install_python
        install(self)
        (self.folder / ".installed").touch()


def _python(name: str, title: str, api: str, environment: str, package: str) -> Client:
    return Client(name, title, api, environment, package)


_CHAT, _RESPONSES, _MESSAGES = "chat", "responses", "messages"
CLIENTS: dict[str, Client] = {
    client.name: client
    for client in (
        _python("openhands_agent", "OpenHands SDK", _CHAT, "openhands", "openhands-sdk"),
        _python("mini_swe_agent", "mini-swe-agent", _CHAT, "mini", "mini-swe-agent"),
        Client(
            "claude_code", "Claude Code", _MESSAGES, "npm:@anthropic-ai/claude-code@2.1.197", ""
        ),
        Client(
            "claude_code_with_tools",
            "Claude Code with `mars-shell`",
            _MESSAGES,
            "npm:@anthropic-ai/claude-code@2.1.197",
            "",
        ),
        Client("codex", "Codex CLI", _RESPONSES, "npm:@openai/codex@0.169.0", ""),
        Client("opencode", "opencode", _CHAT, "npm:opencode-ai@1.18.33", ""),
        Client("cline", "Cline", _CHAT, "npm:cline@3.0.65", ""),
        Client("qwen_code", "Qwen Code", _CHAT, "npm:@qwen-code/qwen-code@0.15.10", ""),
        Client("aider", "aider", _CHAT, "aider", "aider-chat", calls_tools=False),
        _python("openai_chat", "openai (chat, streamed)", _CHAT, "sdks", "openai"),
        _python("openai_responses", "openai (responses)", _RESPONSES, "sdks", "openai"),
        _python("anthropic_messages", "anthropic", _MESSAGES, "sdks", "anthropic"),
        _python("litellm_agent", "litellm", _CHAT, "sdks", "litellm"),
        _python("langgraph_agent", "LangChain, langgraph", _CHAT, "sdks", "langchain"),
        _python("pydantic_ai_agent", "Pydantic AI", _CHAT, "sdks", "pydantic-ai-slim"),
        _python("openai_agents_agent", "OpenAI Agents SDK", _RESPONSES, "sdks", "openai-agents"),
        _python("smolagents_agent", "smolagents", _CHAT, "sdks", "smolagents"),
    )
}
"""All of them, by name."""


def command_of(client: Client, task: str) -> list[str]:
    """What starts it on a task."""
    interpreter = "python" if client.example.suffix == ".py" else "bash"
    found = shutil.which(interpreter, path=path_of(client))
    return [found or interpreter, str(client.example), task]


def path_of(client: Client) -> str:
    """``PATH`` with its commands first, and ours (``mars-shell``) last."""
    ours = Path(sys.executable).parent
    return os.pathsep.join((str(client.bin), os.environ.get("PATH", os.defpath), str(ours)))


def install_all(clients: list[Client], say: Callable[[str], None]) -> dict[str, str]:
    """Install what is missing; what cannot be had here, with the reason."""
    missing: dict[str, str] = {}
    for client in clients:
        if not client.is_installed():
            say(f"installing {client.title} {client.version}")
        try:
            client.install()
        except AgentError as error:
            missing[client.name] = str(error)
            say(f"{client.title}: {error}")
    return missing


def _lock(environment: str) -> Path:
    return ROOT / "requirements" / f"agents-{environment}.lock"


def _install_python(client: Client) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    _do([uv, "venv", "--quiet", "--clear", "--python", "3.12", str(client.folder)])
    into = str(client.folder / "bin" / "python")
    lock = str(_lock(client.environment))
    _do([uv, "pip", "install", "--quiet", "--no-deps", "--python", into, "-r", lock])


def _install_npm(client: Client) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise AgentError("needs npm: install Node.js 20 or newer")
    package = client.environment.removeprefix("npm:")
    quiet = ("--no-audit", "--no-fund", "--loglevel=error")
    _do([npm, "install", *quiet, "--prefix", str(client.folder), package])


def _do(command: list[str]) -> None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise AgentError(f"cannot run {command[0]}: {error.strerror}") from error
    if ran.returncode:
        last = (ran.stderr or ran.stdout).strip().splitlines()[-1:] or ["no message"]
        raise AgentError(f"`{' '.join(command[:3])} ...` failed: {last[0]}")
