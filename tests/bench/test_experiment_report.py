# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mars.bench.experiment_plan import Experiment
from mars.bench.experiment_report import write_report
from mars.bench.experiment_store import About
from mars.bench.experiment_table import MEASURES
from tests.bench.test_experiment_plan import TINY, load
from tests.bench.test_experiment_table import SEEDS, cell, ran

COMMAND = ["mars", "experiment", "run", "x.toml"]


@pytest.fixture
def about(tmp_path: Path) -> About:
    experiment: Experiment = load(TINY, tmp_path)
    return About(experiment=experiment, seeds=SEEDS, command=COMMAND, num_cells=24, code="c")


def both_loads() -> list:
    return ran() + [cell(c.contender, c.cap, c.seed, 60.0 * c.seed, rate_per_s=0.5) for c in ran()]


def test_the_low_load_stands_in_every_table_and_every_figure_names_its_command(
    about: About, tmp_path: Path
):
    assert len(write_report(tmp_path, about, both_loads())) == 2
    text = (tmp_path / "report.md").read_text()
    sections = text.split("\n## ")[1:]
    compared = [s for s in sections if s.startswith("Factor")]
    assert len(compared) == 2
    assert all("0.01 sessions/s (low load)" in s for s in compared)
    assert all("`mars experiment run x.toml`" in s for s in sections)
    assert "| small, 0.01 sessions/s (low load) | mars | 2.00 [" in text
    assert "Incomplete" not in text
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert 1000 < (tmp_path / name).stat().st_size < 300_000
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 4
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert all("<code>mars experiment run x.toml</code>" in figure for figure in figures)
    # Needs nothing else: no reference that a browser would fetch.
    assert not re.search(r'(src|href)="(?!#)', page.replace("xlink:href", "href"))


def test_json_holds_every_measure_of_every_cap_with_its_values_by_seed(
    about: About, tmp_path: Path
):
    write_report(tmp_path, about, both_loads())
    tree = json.loads((tmp_path / "report.json").read_text())
    assert [p["is_low_load"] for p in tree["points"]] == [True, False]
    entries = {(e["contender"], e["cap"]): e for e in tree["points"][0]["entries"]}
    assert set(entries) == {("fcfs", None), ("fcfs", 1), ("fcfs", 2), ("mars", None)}
    assert entries["fcfs", 2]["is_best_cap"]
    mars = entries["mars", None]
    assert mars["values"]["sct_mean_s"] == [5.0, 10.0, 15.0]
    assert set(mars["means"]) == set(MEASURES)
    assert mars["times_better_than_best_cap_of"]["fcfs"]["sct_mean_s"][0] == 1.4


def test_what_is_missing_is_said(about: About, tmp_path: Path):
    write_report(tmp_path, about, ran())
    assert "Incomplete: 12 of 24 cells are done." in (tmp_path / "report.md").read_text()
    about.seeds = [9]
    assert write_report(tmp_path, about, ran()) == []


def test_one_load_is_drawn_as_bars(about: About, tmp_path: Path):
    write_report(tmp_path, about, ran())
    assert (tmp_path / "report.html").read_text().count("<svg") == 4


def test_words_of_a_file_cannot_become_markup(tmp_path: Path):
    experiment = load(TINY.replace('title = "tiny"', 'title = "<b>x"'), tmp_path)
    about = About(experiment=experiment, seeds=SEEDS, command=COMMAND, num_cells=24, code="c")
    write_report(tmp_path, about, ran())
    assert "<b>x" not in (tmp_path / "report.html").read_text()
