"""The board and the alerts name what the processes count. tests/integration/test_alerts.py lets the alerts fire."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from support.program import ROOT

from infra import board
from infra.metrics import METRICS, Metric
from infra.roles import PROCESSES

GRAFANA = ROOT / "infra" / "grafana"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
BOARD = json.loads((GRAFANA / "board.json").read_text())
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
ALL = [*QUERIES, *(rule["expr"] for rule in ALERTS.values())]

OF_PROMETHEUS = {"instance", "le"}
"""Labels that stand at every series, or at every bucket, without being ours."""
OF_PYTHON = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"}


def metric_of(series: str) -> Metric:
    """The metric that a series belongs to."""
    for metric in METRICS:
        endings = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        if series in {metric.name + ending for ending in endings}:
            return metric
    raise AssertionError(f"{series} is nothing that any process counts")


def named(query: str) -> Iterator[tuple[str, str]]:
    """Every series of ours or of Python's that a query names, with what stands in braces behind it."""
    for series, matchers in re.findall(r"\b((?:nightcourt|process)_[a-z_]+)\b(?:\{([^}]*)\})?", query):
        if series not in {"process", "process_"}:
            yield series, matchers


class TestNames:
    def test_the_board_is_the_one_that_the_code_makes(self):
        """The file in the repository is the code's."""
        assert (GRAFANA / "board.json").read_text() == board.render(), (
            "the board is behind; write it anew: .venv/bin/python -m infra.board > infra/grafana/board.json"
        )

    @pytest.mark.parametrize("query", ALL)
    def test_a_query_names_series_and_labels_that_there_are(self, query: str):
        """Every series is counted by some process, every label is its own, and every value is one that it has."""
        labels = set(OF_PROMETHEUS)
        found = list(named(query))
        assert found
        for series, matchers in found:
            if series in OF_PYTHON:
                continue
            metric = metric_of(series)
            labels |= set(metric.labels)
            for label, how, wanted in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
                assert label in metric.labels
                values = metric.labels[label] or (PROCESSES if label == "process" else ())
                if values:
                    assert set(wanted.split("|") if "~" in how else [wanted]) <= set(values)
        for listed in re.findall(r"\b(?:by|without|on|group_left) \(([^)]*)\)", query):
            assert {each.strip() for each in listed.split(",")} <= labels

    def test_a_legend_names_labels_that_are_left(self):
        """What a legend shows is a label that the query keeps."""
        for panel in BOARD["panels"]:
            for target in panel.get("targets", []):
                kept = {
                    each.strip()
                    for listed in re.findall(r"\b(?:by|group_left|on) \(([^)]*)\)", target["expr"])
                    for each in listed.split(",")
                }
                assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, target

    def test_every_metric_is_on_the_board(self):
        """What is counted can be seen."""
        shown = {metric_of(series).name for query in QUERIES for series, _ in named(query) if series not in OF_PYTHON}
        assert shown == {metric.name for metric in METRICS}


def test_what_to_do_about_each_alert_is_written_down():
    """docs/operations.md has it in its table, and names no alert that there is not."""
    page = (ROOT / "docs" / "operations.md").read_text().partition("## Alerts")[2]
    assert set(re.findall(r"`(Nightcourt\w+)`", page)) == set(ALERTS)
