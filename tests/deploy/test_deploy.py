# SPDX-License-Identifier: Apache-2.0
"""Dashboard, alerts and the page for operators speak of the metrics that there are."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mars.config import GatewayConfig, MarsConfig, load
from mars.core.events import HostSampled
from mars.gateway import Gateway

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "mars.json"
ALERTS = ROOT / "deploy" / "prometheus" / "mars-alerts.yml"
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@pytest.fixture(scope="module")
def exported() -> dict[str, str]:
    """Families at ``/metrics``, without ``mars:``, and their types."""
    gateway = Gateway(MarsConfig(gateway=GatewayConfig(admission="none")))
    host: dict[str, Any] = {field.name: 0 for field in fields(HostSampled)}
    gateway.hub.emit(HostSampled(**host))
    return {f.name.removeprefix("mars:"): f.type for f in gateway.metrics.collect()}


def families(text: str, exported: dict[str, str]) -> set[str]:
    """Families named in an expression; one that is not exported, or with a wrong suffix, fails."""
    allowed = {f + s: f for f, kind in exported.items() for s in SUFFIXES[kind]}
    names = re.findall(r"mars:([a-z_]+)", text)
    unknown = set(names) - set(allowed)
    assert not unknown
    return {allowed[name] for name in names}


def test_the_dashboard_shows_every_metric_and_no_other(exported: dict[str, str]) -> None:
    board = json.loads(DASHBOARD.read_text())
    assert families(DASHBOARD.read_text(), exported) == set(exported)
    variables = {v["name"] for v in board["templating"]["list"]}
    assert variables == {"DS_PROMETHEUS", "model_name"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or all(t["expr"] for t in panel["targets"])


def test_alerts_use_metrics_that_there_are_and_are_on_the_page(exported: dict[str, str]) -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]:
        families(rule["expr"], exported)
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys()
    names = {rule["alert"] for rule in group["rules"]}
    assert names == set(re.findall(r"`(Mars[A-Za-z]+)`", PAGE))


def test_the_page_lists_every_metric(exported: dict[str, str]) -> None:
    table = PAGE.partition("| `mars:` |")[2].partition("\n\n")[0]
    first = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    listed = {name for row in first for name in re.findall(r"`([a-z_]+)", row)}
    assert listed == {f + (SUFFIXES[k][0] if k == "counter" else "") for f, k in exported.items()}


def test_labels_in_the_examples_are_those_of_the_metrics(exported: dict[str, str]) -> None:
    gateway = Gateway(MarsConfig(gateway=GatewayConfig(admission="none")))
    gateway.metrics.answered(200, "default")
    gateway.tenants.refuse("default", "max_turns", "", 1)
    labels = {"le", "model_name", "instance", "job", "status", "reason", "level", "question"}
    for family in gateway.metrics.collect():
        labels |= {name for sample in family.samples for name in sample.labels}
    used = re.findall(r"by \(([a-z_, ]+)\)", DASHBOARD.read_text() + ALERTS.read_text())
    assert {name for group in used for name in group.split(", ")} <= labels | {"outcome"}


def test_the_other_examples_can_be_read(tmp_path: Path) -> None:
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert scrape["rule_files"] == [ALERTS.name]
    assert "mars" in yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    unit = (ROOT / "deploy/systemd/mars-gateway.service").read_text()
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop_s) > load(environ={}).gateway.drain_s
