"""The board for Grafana: `python -m infra.board > infra/grafana/board.json`. A test compares the two.

Gauges of the docket are the same from every dispatcher, so their maximum is shown; counters are summed.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
_EVERY = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what it shows, in which unit of Grafana's, and its queries by legend."""

    title: str
    unit: str
    queries: Mapping[str, str]
    note: str = ""
    is_number: bool = False


def _rate(metric: str, *by: str) -> str:
    """How often a second something is counted."""
    return f"sum by ({', '.join(by)}) (rate({metric}[{_EVERY}]))" if by else f"sum(rate({metric}[{_EVERY}]))"


def _quantile(share: float, histogram: str, *by: str) -> str:
    """What this share of all values is at most."""
    return f"histogram_quantile({share}, {_rate(f'{histogram}_bucket', 'le', *by)})"


def _largest(gauge: str, *by: str, where: str = "") -> str:
    return f"max by ({', '.join(by)}) ({gauge}{where})" if by else f"max({gauge}{where})"


def _number(title: str, query: str, unit: str = "short", note: str = "") -> Panel:
    return Panel(title, unit, {"": query}, note, is_number=True)


BOARD: Mapping[str, tuple[Panel, ...]] = {
    "Now": (
        _number("Workers", _largest("nightcourt_workers")),
        _number(
            "Slots in use",
            'max(sum without (lane) (nightcourt_shards{state="running"})) / max(nightcourt_worker_slots{of="all"})',
            "percentunit",
        ),
        _number("Shards that wait", 'max(sum without (lane, state) (nightcourt_shards{state=~"waiting|released"}))'),
        _number(
            "Oldest that somebody waits for",
            _largest("nightcourt_oldest_shard_seconds", where='{lane="interactive"}'),
            "s",
        ),
        _number("Batches in progress", _largest("nightcourt_batches", where='{status="in_progress"}')),
        _number("Decided a second", _rate("nightcourt_outcomes_total"), "ops"),
        _number("Circuits not closed", 'max(sum without (state) (nightcourt_callback_circuits{state!="closed"}))'),
        _number("Docket read", "time() - max(nightcourt_docket_read_timestamp_seconds)", "s", "How long ago."),
    ),
    "Docket": (
        Panel("Shards", "short", {"{{lane}} {{state}}": _largest("nightcourt_shards", "lane", "state")}),
        Panel(
            "Oldest shard",
            "s",
            {"{{lane}} {{state}}": _largest("nightcourt_oldest_shard_seconds", "lane", "state")},
            "Waiting since it was due, released and running since it was released.",
        ),
        Panel(
            "Leases",
            "short",
            {
                "out": 'max(sum without (lane) (nightcourt_shards{state="running"}))',
                "slots of {{of}}": _largest("nightcourt_worker_slots", "of"),
            },
        ),
        Panel(
            "Leases that nobody saw to",
            "s",
            {"overdue": _largest("nightcourt_lease_overdue_seconds")},
        ),
        Panel("Batches", "short", {"{{status}}": _largest("nightcourt_batches", "status")}),
        Panel(
            "Filed a second",
            "ops",
            {"{{lane}}": _rate("nightcourt_filed_comparisons_total", "lane")},
        ),
    ),
    "Judging": (
        Panel("Decided a second", "ops", {"{{lane}} {{result}}": _rate("nightcourt_outcomes_total", "lane", "result")}),
        Panel("Ballots a second", "ops", {"ballots": _rate("nightcourt_ballots_total")}),
        Panel(
            "Tokens a second",
            "short",
            {"of prompts": _rate("nightcourt_prompt_tokens_total"), "cached": _rate("nightcourt_cached_tokens_total")},
        ),
        Panel(
            "Cache hits",
            "percentunit",
            {
                "verdicts used again": (
                    f"{_rate('nightcourt_verdicts_reused_total')}"
                    f' / sum(rate(nightcourt_outcomes_total{{result="succeeded"}}[{_EVERY}]))'
                ),
                "tokens computed before": (
                    f"{_rate('nightcourt_cached_tokens_total')} / {_rate('nightcourt_prompt_tokens_total')}"
                ),
            },
        ),
        Panel("Device seconds a second", "short", {"busy": _rate("nightcourt_gpu_seconds_total")}),
        Panel(
            "A step of the engine",
            "s",
            {
                "{{kind}}, half": _quantile(0.5, "nightcourt_engine_step_seconds", "kind"),
                "{{kind}}, 95 %": _quantile(0.95, "nightcourt_engine_step_seconds", "kind"),
            },
        ),
        Panel(
            "Wait for the engine, 95 %", "s", {"{{lane}}": _quantile(0.95, "nightcourt_engine_wait_seconds", "lane")}
        ),
        Panel("A run of a shard, 95 %", "s", {"{{lane}}": _quantile(0.95, "nightcourt_shard_run_seconds", "lane")}),
        Panel(
            "The engine's own",
            "short",
            {"{{what}}": "sum by (what) (nightcourt_engine_state)"},
            "TensorRT-LLM alone tells.",
        ),
    ),
    "Faults": (
        Panel(
            "Attempts that failed",
            "ops",
            {"{{then}}": _rate("nightcourt_failed_attempts_total", "then")},
        ),
        Panel("Work whose worker was lost", "ops", {"{{then}}": _rate("nightcourt_losses_total", "then")}),
        Panel("Failures of the engine", "ops", {"{{kind}}": _rate("nightcourt_engine_errors_total", "kind")}),
        Panel(
            "Runs by their ending",
            "ops",
            {
                "{{ending}}": _rate("nightcourt_shard_runs_total", "ending"),
                "given back": _rate("nightcourt_shards_given_back_total"),
            },
        ),
        Panel(
            "Leases lapsed, writes refused",
            "ops",
            {
                "lapsed: {{of}}": _rate("nightcourt_leases_lapsed_total", "of"),
                "stale writes": _rate("nightcourt_stale_writes_refused_total"),
                "heartbeats not taken": _rate("nightcourt_heartbeats_failed_total"),
            },
        ),
        Panel("Passed their deadline", "ops", {"comparisons": _rate("nightcourt_expired_comparisons_total")}),
    ),
    "Dispatcher and stores": (
        Panel(
            "A turn of the dispatcher",
            "s",
            {
                "half": _quantile(0.5, "nightcourt_dispatcher_turn_seconds"),
                "99 %": _quantile(0.99, "nightcourt_dispatcher_turn_seconds"),
            },
        ),
        Panel(
            "Hints a second",
            "ops",
            {
                "{{queue}} {{why}}": _rate("nightcourt_hints_total", "queue", "why"),
                "without work": _rate("nightcourt_hints_without_work_total"),
                "claims": _rate("nightcourt_claims_total"),
            },
        ),
        Panel("Unreachable", "percentunit", {"{{store}}": _rate("nightcourt_unreachable_seconds_total", "store")}),
        Panel("Reading the docket", "s", {"took": _largest("nightcourt_docket_read_seconds")}),
        Panel("Database", "bytes", {"size": _largest("nightcourt_database_bytes")}),
        Panel(
            "Disk of the data folder",
            "bytes",
            {"free": "min(nightcourt_disk_free_bytes)", "in all": _largest("nightcourt_disk_bytes")},
            "Of the embedded stack; 0 elsewhere.",
        ),
    ),
    "HTTP": (
        Panel(
            "Requests a second",
            "reqps",
            {"{{method}} {{route}} {{status}}": _rate("nightcourt_http_requests_total", "method", "route", "status")},
        ),
        Panel(
            "Until the answer, 95 %", "s", {"{{route}}": _quantile(0.95, "nightcourt_http_request_seconds", "route")}
        ),
        Panel(
            "Under way; uploads",
            "short",
            {
                "requests": "sum(nightcourt_http_requests_under_way)",
                "bytes a second": _rate("nightcourt_uploaded_bytes_total"),
            },
        ),
    ),
    "Callbacks": (
        Panel(
            "From an ending to its first try",
            "s",
            {
                "half": _quantile(0.5, "nightcourt_callback_first_try_seconds"),
                "95 %": _quantile(0.95, "nightcourt_callback_first_try_seconds"),
            },
        ),
        Panel("Attempts a second", "ops", {"{{result}}": _rate("nightcourt_callback_attempts_total", "result")}),
        Panel("An attempt, 95 %", "s", {"95 %": _quantile(0.95, "nightcourt_callback_attempt_seconds")}),
        Panel("Not ended", "short", {"{{state}}": _largest("nightcourt_callbacks", "state")}),
        Panel("Due longest", "s", {"to a closed circuit": _largest("nightcourt_oldest_callback_seconds")}),
        Panel("Circuits of receivers", "short", {"{{state}}": _largest("nightcourt_callback_circuits", "state")}),
        Panel(
            "Put back or given up",
            "ops",
            {
                "no secret": _rate("nightcourt_callbacks_put_back_total"),
                "last attempt": _rate("nightcourt_callbacks_dead_total"),
                "without an answer": _rate("nightcourt_callbacks_buried_total"),
                "receivers disabled": _rate("nightcourt_callback_endpoints_disabled_total"),
            },
        ),
    ),
    "Processes": (
        Panel(
            "CPU",
            "percentunit",
            {
                "{{process}} {{instance}}": (
                    f"rate(process_cpu_seconds_total[{_EVERY}])"
                    " * on (instance) group_left (process) nightcourt_build_info"
                )
            },
        ),
        Panel(
            "Memory",
            "bytes",
            {
                "{{process}} {{instance}}": (
                    "process_resident_memory_bytes * on (instance) group_left (process) nightcourt_build_info"
                )
            },
        ),
        Panel(
            "Versions",
            "short",
            {"{{process}} {{version}} {{engine}}": "count by (process, version, engine) (nightcourt_build_info)"},
        ),
    ),
}
"""Every panel, by the row that it stands in."""


def render() -> str:
    """Render the board as Grafana imports it. It asks for the data source, and names none."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in BOARD.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": _place(0, top, _WIDTH, 1)})
        width, height = (3, 4) if members[0].is_number else (8, 8)
        across = _WIDTH // width
        for number, panel in enumerate(members):
            down, right = divmod(number, across)
            place = _place(right * width, top + 1 + down * height, width, height)
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
        top += 1 + -(-len(members) // across) * height
    board = {
        "title": "nightcourt",
        "uid": "nightcourt",
        "tags": ["nightcourt"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": panels,
    }
    return json.dumps(board, indent=1) + "\n"


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": "stat" if panel.is_number else "timeseries",
        "title": panel.title,
        "description": panel.note,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query, "legendFormat": legend or "__auto"}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(render())
