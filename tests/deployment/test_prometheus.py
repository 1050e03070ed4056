# SPDX-License-Identifier: Apache-2.0
"""packaging/prometheus and packaging/grafana name metrics, labels and values that there are; each alarm has its section in the runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import generate_latest

from deployment.units import PACKAGING, ROOT
from keyferry.wiring.measuring import CLASSES, CX_OUTCOMES, GONE, PUSH_OUTCOMES, REGISTER_OUTCOMES
from keyferry.wiring.metrics import ALARMED, COUNTERS, GAUGES, HISTOGRAMS, Metrics

ERRORS = (ROOT / "docs" / "errors.md").read_text("utf-8")
RUNBOOK = ROOT / "docs" / "runbook.md"
ALERTS = PACKAGING / "prometheus" / "alerts.yml"
METRIC = re.compile(r"\b(?:keyferry|process)_[a-z_]+\b")
PROCESS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
}
OUTCOMES = {*REGISTER_OUTCOMES, *PUSH_OUTCOMES, *CX_OUTCOMES}


def known() -> dict[str, set[str]]:
    """Return every metric's name with its labels; docs/errors.md is held to the code by tests/docs/test_reference.py."""
    counters = re.findall(r"^\| `([a-z_]+)` \|", ERRORS.partition("## Metrics\n")[2].partition("\n### ")[0], re.MULTILINE)
    found = {f"keyferry_{name}_total": {"reason"} for name in counters}
    for name, described in HISTOGRAMS.items():
        for part in ("bucket", "count", "sum"):
            found[f"keyferry_{name}_{part}"] = {*described.labels, *(("le",) if part == "bucket" else ())}
    found |= {f"keyferry_{name}_total": set(described.labels) for name, described in COUNTERS.items()}
    found |= {f"keyferry_{name}": set(described.labels) for name, described in GAUGES.items()}
    return found | {name: set() for name in PROCESS}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PACKAGING / "grafana" / "keyferry.json").read_text("utf-8"))
    return found


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_label_and_value_exists(expression: str) -> None:
    """A name that was changed leaves no silent alarm behind."""
    metrics = known()
    named = METRIC.findall(expression)
    assert named or expression.startswith("up{")
    assert set(named) <= metrics.keys()
    labels = {"job", "instance"}.union(*(metrics[name] for name in named)) if named else {"job"}
    assert set(re.findall(r"([a-z_]+)(?:=~|!=|=)\"", expression)) <= labels
    for group in re.findall(r"by \(([a-z_, ]+)\)", expression):
        assert set(group.split(", ")) <= labels, group
    for values in re.findall(r"outcome(?:=~|!=|=)\"([^\"]+)\"", expression):
        assert set(values.split("|")) <= OUTCOMES
    for values in re.findall(r"class(?:=~|!=|=)\"([^\"]+)\"", expression):
        assert set(values.split("|")) <= {*CLASSES, GONE}
    for values in re.findall(r"reason(?:=~|!=|=)\"([^\"]+)\"", expression):
        assert all(f"`{value}`" in ERRORS for value in values.split("|"))


def test_what_raises_an_alarm_by_one_event_is_shown_before_it_happens() -> None:
    """A series that begins with 1 has no increase: the first stranger, the first forged AUTS would raise no alarm."""
    shown = generate_latest(Metrics().registry).decode()
    alarmed = [rule["expr"] for rule in rules() if re.search(r"(increase|rate)\(keyferry_\w+_total.*> 0'?$", rule["expr"])]
    assert len(alarmed) == 8
    for expression in alarmed:
        for name, reasons in re.findall(r"(keyferry_\w+_total)(?:\{reason=~?\"([^\"]+)\"\})?", expression):
            for reason in reasons.split("|") if reasons else ("",):
                assert f'\n{name}{{reason="{reason}' in shown, expression
    table = re.findall(r"^\| `([a-z-]+)` \|", ERRORS.partition("### Refused pushes\n")[2].partition("\n### ")[0], re.MULTILINE)
    assert sorted(table) == sorted(ALARMED["as_pushes_refused"])


def test_a_server_that_stands_still_raises_an_alarm_though_its_clients_leave_before_the_504() -> None:
    """Who leaves is no 5xx; nor may those who leave on purpose hide the 5xx of others among them."""
    raised = {rule["alert"]: rule["expr"] for rule in rules()}
    assert f'rate(keyferry_http_responses_total{{class="{GONE}"}}[5m])' in raised["KeyferryClientsLeave"]
    for alert, expression in raised.items():
        if 'class="5xx"' in expression:
            assert all(GONE in labels or "5xx" in labels for labels in re.findall(r"http_responses_total(\S*)\[", expression)), alert


def test_quantiles_are_taken_of_buckets_by_le() -> None:
    for expression in expressions():
        for inner in re.findall(r"histogram_quantile\([\d.]+, (.*)", expression):
            assert re.match(r"sum by \([a-z_, ]*le\) \(rate\(keyferry_\w+_bucket[\[{]", inner), expression


def test_every_alarm_has_its_section_in_the_runbook() -> None:
    """Meaning, look, remedy; and no section is of an alarm that there is not."""
    named = [rule["alert"] for rule in rules()]
    assert len(named) == len(set(named)) > 20
    sections = re.split(r"^### ", RUNBOOK.read_text("utf-8").partition("## Alarms\n")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]
    found = {section.partition("\n")[0]: section for section in sections}
    assert list(found) == named
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        for word in ("*Means:*", "*Look:*", "*Do:*"):
            assert word in found[rule["alert"]], f"{rule['alert']} {word}"


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Ids are unique, panels do not overlap, every panel asks the data source that was chosen."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def test_promtool_takes_the_rules() -> None:
    """Where Prometheus is installed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here: it is in Debian's package prometheus")
    done = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
