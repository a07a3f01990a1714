# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from cyclopts import App

from mars import __version__
from mars.cli import main as cli
from mars.cli.errors import CliError, describe
from tests.cli.conftest import Run

HEAVY = ("vllm", "torch", "starlette", "matplotlib", "numpy", "aiohttp", "zmq")


def test_help_lists_every_verb_with_its_line(mars: Run):
    shown = mars("--help")
    assert shown.returncode == 0
    for name, (_, summary) in cli.VERBS.items():
        assert f" {name} " in shown.stdout
        assert summary in shown.stdout


def test_help_loads_no_verb():
    code = (
        "import sys\nfrom mars.cli.main import build\n"
        "try: build(['--help'])(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_shows_examples_that_name_it(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.build([name, "--help"])([name, "--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert f"mars {name}" in shown.partition("Examples")[2]


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_parameter_of_every_command_is_explained(name: str):
    module, _, attribute = cli.VERBS[name][0].partition(":")
    verb = getattr(importlib.import_module(module), attribute)
    for app in _commands(verb):
        if app.default_command is None:
            continue
        for argument in app.assemble_argument_collection(parse_docstring=True):
            if argument.show:
                assert argument.parameter.help, f"{app.name}: {argument.name}"


def _commands(app: App) -> list[App]:
    names = [name for name in app if not name.startswith("-")]
    return [app, *(command for name in names for command in _commands(app[name]))]


def test_version(mars: Run):
    assert mars("--version").stdout.strip() == __version__


def test_an_unknown_verb_is_refused(mars: Run):
    ran = mars("severe")
    assert ran.returncode == 2
    assert "severe" in ran.stderr + ran.stdout
    assert "serve" in ran.stderr + ran.stdout


def test_an_error_of_ours_is_one_message_without_traceback(mars: Run):
    ran = mars("doctor", "--set", "engine.polcy=fcfs")
    assert ran.returncode == 1
    assert ran.stderr == (
        "mars: error: the command line: unknown setting 'engine.polcy'; "
        "did you mean 'engine.policy'?\n"
    )


def test_a_closed_pipe_is_no_error():
    code = "import sys; from mars.cli.main import main; sys.argv = ['mars', '--help']; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_errors_are_described_by_cause_and_fix():
    assert describe(CliError("it broke", "mend it")) == ["it broke", "fix: mend it"]
    assert describe(CliError("it broke")) == ["it broke"]
    missing = FileNotFoundError(2, "No such file or directory", "x.toml")
    assert describe(missing) == ["x.toml: No such file or directory"]
    lacking = ModuleNotFoundError("No module named 'scipy'", name="scipy")
    assert describe(lacking) == ["scipy is not installed", "fix: pip install 'mars-serving[bench]'"]
    outer = ImportError("Cannot import module 'mars.cli.bench'")
    outer.__cause__ = ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats")
    assert describe(outer) == describe(lacking)


def test_a_defect_keeps_its_traceback():
    assert describe(ValueError("not ours")) is None
    assert describe(ModuleNotFoundError("No module named 'marsx'", name="marsx")) is None
    assert describe(KeyboardInterrupt()) is None


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_no_verb_loads_what_only_an_extra_brings(name: str):
    module = cli.VERBS[name][0].partition(":")[0]
    extras = ("matplotlib", "polars", "pyarrow", "scipy", "torch", "vllm")
    code = f"import sys, {module}; print([n for n in {extras} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
