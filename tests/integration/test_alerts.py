"""Prometheus' own tool reads the alerts, and lets each fire over forty minutes of numbers."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support.program import ROOT

from infra.roles import PROCESSES

RULES = ROOT / "infra" / "grafana" / "alerts.yaml"
ALERTS = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
STEADY = "0x160"
RISING = "0+10x160"

WELL = {
    **{f'nightcourt_build_info{{process="{each}",instance="{each}"}}': "1x160" for each in PROCESSES},
    'process_start_time_seconds{instance="worker"}': STEADY,
    'process_start_time_seconds{instance="dispatcher"}': STEADY,
    'nightcourt_oldest_shard_seconds{lane="interactive",state="waiting"}': STEADY,
    'nightcourt_oldest_shard_seconds{lane="bulk",state="waiting"}': "3600x160",
    "nightcourt_workers": "2x160",
    'nightcourt_outcomes_total{lane="bulk",result="succeeded"}': RISING,
    'nightcourt_outcomes_total{lane="bulk",result="engine_failed"}': STEADY,
    'nightcourt_losses_total{then="errored"}': STEADY,
    "nightcourt_lease_overdue_seconds": "2x160",
    'nightcourt_leases_lapsed_total{of="shard"}': STEADY,
    "nightcourt_stale_writes_refused_total": STEADY,
    'nightcourt_engine_errors_total{kind="failed"}': STEADY,
    'nightcourt_engine_errors_total{kind="away"}': STEADY,
    'nightcourt_engine_errors_total{kind="out_of_memory"}': RISING,
    'nightcourt_engine_step_seconds_count{kind="score"}': RISING,
    'nightcourt_dispatcher_turn_seconds_count{instance="dispatcher"}': RISING,
    'nightcourt_dispatcher_turn_seconds_bucket{instance="dispatcher",le="0.1"}': RISING,
    'nightcourt_dispatcher_turn_seconds_bucket{instance="dispatcher",le="5.0"}': RISING,
    'nightcourt_dispatcher_turn_seconds_bucket{instance="dispatcher",le="+Inf"}': RISING,
    "nightcourt_docket_read_timestamp_seconds": "0+15x160",
    'nightcourt_unreachable_seconds_total{store="redis"}': STEADY,
    "nightcourt_heartbeats_failed_total": STEADY,
    "nightcourt_disk_free_bytes": "50x160",
    "nightcourt_disk_bytes": "100x160",
    'nightcourt_http_requests_total{route="/v1/comparisons",status="202"}': RISING,
    'nightcourt_http_requests_total{route="/v1/comparisons",status="503"}': STEADY,
    'nightcourt_http_requests_total{route="/readyz",status="200"}': RISING,
    'nightcourt_http_requests_total{route="/readyz",status="503"}': STEADY,
    'nightcourt_http_request_seconds_bucket{route="/v1/comparisons",le="0.1"}': RISING,
    'nightcourt_http_request_seconds_bucket{route="/v1/comparisons",le="10.0"}': RISING,
    'nightcourt_http_request_seconds_bucket{route="/v1/comparisons",le="+Inf"}': RISING,
    'nightcourt_http_request_seconds_bucket{route="/readyz",le="0.1"}': RISING,
    'nightcourt_http_request_seconds_bucket{route="/readyz",le="+Inf"}': RISING,
    'nightcourt_http_request_seconds_bucket{route="/v1/files",le="0.1"}': STEADY,
    'nightcourt_http_request_seconds_bucket{route="/v1/files",le="+Inf"}': "0+100x160",
    "nightcourt_oldest_callback_seconds": STEADY,
    'nightcourt_callback_attempts_total{result="delivered"}': RISING,
    'nightcourt_callback_attempts_total{result="timeout"}': STEADY,
    'nightcourt_callback_first_try_seconds_bucket{le="1.0"}': RISING,
    'nightcourt_callback_first_try_seconds_bucket{le="300.0"}': RISING,
    'nightcourt_callback_first_try_seconds_bucket{le="+Inf"}': RISING,
    'nightcourt_callback_circuits{state="open"}': STEADY,
    'nightcourt_callback_circuits{state="half_open"}': STEADY,
    "nightcourt_callback_endpoints_disabled_total": STEADY,
    "nightcourt_callbacks_dead_total": STEADY,
    "nightcourt_callbacks_put_back_total": STEADY,
    "nightcourt_callbacks_buried_total": STEADY,
}
"""Forty minutes in which all is well, a value each 15 seconds, in promtool's notation."""

_WAITING = 'nightcourt_oldest_shard_seconds{lane="bulk",state="waiting"}'
_WORKERS = "nightcourt_workers"
_WAITS = 'nightcourt_oldest_shard_seconds{lane="interactive",state="waiting"}'
_DECIDED = 'nightcourt_outcomes_total{lane="bulk",result="succeeded"}'
_TAKEN = 'nightcourt_http_requests_total{route="/v1/comparisons",status="202"}'
_FAILED = 'nightcourt_http_requests_total{route="/v1/comparisons",status="503"}'
_SENT = 'nightcourt_callback_attempts_total{result="delivered"}'
_TURNS = 'nightcourt_dispatcher_turn_seconds_count{instance="dispatcher"}'
ILL: dict[str, dict[str, str]] = {
    "NightcourtNothingMoves": {_DECIDED: "500x160"},
    "NightcourtNoWorkers": {"nightcourt_workers": STEADY, _DECIDED: "500x160"},
    "NightcourtInteractiveLate": {_WAITS: "45x160"},
    "NightcourtLeasesOverdue": {"nightcourt_lease_overdue_seconds": "90x160"},
    "NightcourtLeasesLapse": {'nightcourt_leases_lapsed_total{of="shard"}': "0+1x160"},
    "NightcourtStaleWrites": {"nightcourt_stale_writes_refused_total": "0+1x160"},
    "NightcourtErrors": {'nightcourt_outcomes_total{lane="bulk",result="engine_failed"}': "0+1x160"},
    "NightcourtEngineFails": {'nightcourt_engine_errors_total{kind="failed"}': "0+2x160"},
    "NightcourtProcessMissing": {'nightcourt_build_info{process="callbacks",instance="callbacks"}': "_x160"},
    "NightcourtRestarts": {'process_start_time_seconds{instance="worker"}': "0+1x160"},
    "NightcourtDispatcherStuck": {_TURNS: "900x160"},
    "NightcourtDispatcherSlow": {'nightcourt_dispatcher_turn_seconds_bucket{instance="dispatcher",le="0.1"}': STEADY},
    "NightcourtDocketUnread": {"nightcourt_docket_read_timestamp_seconds": "9x160"},
    "NightcourtStoreUnreachable": {'nightcourt_unreachable_seconds_total{store="redis"}': "0+15x160"},
    "NightcourtHeartbeatsFail": {"nightcourt_heartbeats_failed_total": "0+1x160"},
    "NightcourtDiskFills": {"nightcourt_disk_free_bytes": "5x160"},
    "NightcourtHttpErrors": {_FAILED: "0+1x160"},
    "NightcourtHttpSlow": {'nightcourt_http_request_seconds_bucket{route="/v1/comparisons",le="0.1"}': STEADY},
    "NightcourtCallbacksLate": {"nightcourt_oldest_callback_seconds": "90x160", _SENT: "500x160"},
    "NightcourtCallbacksSlow": {'nightcourt_callback_first_try_seconds_bucket{le="1.0"}': STEADY},
    "NightcourtCallbackSecrets": {"nightcourt_callbacks_put_back_total": "0+1x160"},
    "NightcourtCircuitOpen": {'nightcourt_callback_circuits{state="open"}': "1x160"},
    "NightcourtReceiverDisabled": {"nightcourt_callback_endpoints_disabled_total": "0x100 1x60"},
    "NightcourtCallbacksGivenUp": {"nightcourt_callbacks_buried_total": "0x100 1x60"},
}
"""For each alert, what is otherwise when it fires, alone."""

NIGHTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "a window opens at 5 min over work of hours, and judges that start from none are there at 21 min": (
        [],
        {_WAITING: "0x19 25200+15x140", _WORKERS: "0x83 2x76", _DECIDED: "_x83 0x3 0+10x72"},
    ),
    "a batch comes at 15 min, just when the judges have ended, and others are there at 35 min": (
        [],
        {_WAITING: "3600x59 0+15x99", _WORKERS: "2x59 0x79 2x19", _DECIDED: "0+10x59 600x79 610+10x19"},
    ),
    "a window opens at 5 min, judges are there at 20 min, and decide nothing": (
        ["NightcourtNothingMoves"],
        {_WAITING: "0x19 25200+15x140", _WORKERS: "0x79 2x80", _DECIDED: "_x79 0x80"},
    ),
    "judges start again and again, and are gone before they decide anything": (
        ["NightcourtNothingMoves"],
        {
            _WORKERS: " ".join(["2x3 0x11"] * 10),
            _DECIDED: "500x160",
        },
    ),
    "a window opens at 5 min, and no judge comes": (
        ["NightcourtNoWorkers"],
        {_WAITING: "0x19 25200+15x140", _WORKERS: STEADY, _DECIDED: "_x160"},
    ),
}
"""For nights, what is otherwise in them, and which alerts fire in their course."""

DAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "a worker ends after half a minute each time, and is started anew after the five minutes that Kubernetes waits": (
        ["NightcourtRestarts"],
        {
            'process_start_time_seconds{instance="worker"}': " ".join(f"{330 * n}x2 _x19" for n in range(7)),
            'nightcourt_build_info{process="worker",instance="worker"}': " ".join(["1x2 _x19"] * 7),
        },
    ),
    "a dispatcher that starts at 37 min waits for the migration": (
        [],
        {_TURNS: "_x148 0x12", 'process_start_time_seconds{instance="dispatcher"}': "_x148 2220x12"},
    ),
    "so does an API, which is not ready": (
        [],
        {'nightcourt_http_requests_total{route="/readyz",status="503"}': RISING},
    ),
    "few requests are sent, among many probes, and none is answered well": (
        ["NightcourtHttpErrors"],
        {_TAKEN: STEADY, _FAILED: "0+0.1x160"},
    ),
    "few requests are sent, among many probes, and each takes long": (
        ["NightcourtHttpSlow"],
        {
            'nightcourt_http_request_seconds_bucket{route="/v1/comparisons",le="0.1"}': STEADY,
            'nightcourt_http_request_seconds_bucket{route="/v1/comparisons",le="10.0"}': "0+0.1x160",
            'nightcourt_http_request_seconds_bucket{route="/v1/comparisons",le="+Inf"}': "0+0.1x160",
        },
    ),
    "a large batch tells of each of its lines": ([], {"nightcourt_oldest_callback_seconds": "0+15x160"}),
    "a receiver that is down is tried again and again, and others wait": (
        ["NightcourtCallbacksLate"],
        {
            "nightcourt_oldest_callback_seconds": "90x160",
            _SENT: "500x160",
            'nightcourt_callback_attempts_total{result="timeout"}': RISING,
        },
    ),
}
"""The same for days."""


def world(
    firing: list[str], changes: dict[str, str], *, within: str = "15s", name: str = "", minutes: int = 40
) -> dict[str, object]:
    """One of promtool's tests: these alerts fire within some time before the end, and no others."""
    assert set(changes) <= set(WELL)
    return {
        "name": name or " ".join(firing) or "all is well",
        "interval": "15s",
        "input_series": [{"series": series, "values": values} for series, values in (WELL | changes).items()],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (last_over_time(ALERTS{{alertstate="firing"}}[{within}]))',
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": f'{{alertname="{each}"}}', "value": 1} for each in sorted(firing)],
            }
        ],
    }


def promtool(*arguments: str | Path) -> None:
    """Run Prometheus' tool, which is to find nothing wrong."""
    ended = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)  # noqa: S607
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is not installed")
class TestAlerts:
    def test_the_rules_are_prometheus_rules(self):
        """Prometheus' own tool takes them."""
        promtool("check", "rules", RULES)

    def test_every_alert_fires_in_its_own_case_and_none_while_all_is_well(self, tmp_path: Path):
        """Prometheus' own tool works them out over forty minutes of numbers."""
        assert set(ILL) == set(ALERTS)
        check([world([], {}), *(world([alert], changes) for alert, changes in ILL.items())], tmp_path)

    @pytest.mark.parametrize("minutes", range(30, 40, 2))
    def test_an_engines_server_that_is_away_is_told_of_all_the_time(self, tmp_path: Path, minutes: int):
        """Each call of the engine waits for five minutes, so that there is a failure as often as that and no more."""
        once_in_five_minutes = " ".join(f"{count}x20" for count in range(8))
        away = {
            'nightcourt_engine_errors_total{kind="away"}': once_in_five_minutes,
            'nightcourt_engine_step_seconds_count{kind="score"}': once_in_five_minutes,
        }
        check([world(["NightcourtEngineFails"], away, minutes=minutes)], tmp_path)

    def test_a_night_pages_nobody_for_judges_that_are_on_their_way(self, tmp_path: Path):
        """Judges have their fifteen minutes to start; what stands still beyond that is told, and once."""
        nights = NIGHTS.items()
        check([world(firing, changes, within="40m", name=name) for name, (firing, changes) in nights], tmp_path)

    def test_a_day_has_its_own(self, tmp_path: Path):
        """Restarts far apart and what probes would hide are told; starting, and much to send, are no faults."""
        check([world(firing, changes, within="40m", name=name) for name, (firing, changes) in DAYS.items()], tmp_path)


def check(worlds: list[dict[str, object]], folder: Path) -> None:
    """Have Prometheus' own tool see what fires in some worlds."""
    file = folder / "worlds.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": worlds}))
    promtool("test", "rules", file)
