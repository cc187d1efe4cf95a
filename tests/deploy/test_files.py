"""What is deployed fits its schemas, watches what is measured, and each check of it turns red."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from deploy.checking import DEPLOY, Missing, Outcome, Wrong, outcome
from deploy.checking.files import (
    CHECKS,
    compose,
    dockerfile,
    expressions,
    grafana,
    kubernetes,
    prometheus,
)
from serving.metrics import Metrics

METRIC = re.compile(r"\bfucina_[a-z_]+\b")

# (check, file, what it says, what it says then)
BROKEN = [
    (dockerfile, "Dockerfile", "USER 10001:10001", "RUN cd /tmp && sudo true"),
    (dockerfile, "Dockerfile", "FROM ${BASE} AS runtime", "FROM debian:latest AS runtime"),
    (compose, "compose.yaml", "restart: unless-stopped", "restart_policy: unless-stopped"),
    (compose, "compose.yaml", ":?in deploy/.env}", ":-password}"),
    (compose, "compose.gpu.yaml", "devices:", "device:"),
    (kubernetes, "kubernetes/base/deployment.yaml", "startupProbe", "startProbe"),
    (kubernetes, "kubernetes/base/autoscaler.yaml", "maxReplicas: 8", "maxReplicas: many"),
    (kubernetes, "kubernetes/training/job.yaml", "completions: 2", "completion: 2"),
    (kubernetes, "kubernetes/prefect/job-template.json", '"readOnly', '"readOnlyy'),
    (prometheus, "prometheus/prometheus.yml", "scrape_interval", "interval"),
    (prometheus, "prometheus/alarms.yml", "> 0.01", "> 0.5"),
    (prometheus, "prometheus/alarms.yml", "> 0.01", "> 0.00001"),
    (prometheus, "prometheus/alarms.yml", "fucina_recheck_alarms_total", "fucina_alarms_total"),
    (grafana, "grafana/dashboards/serving.json", "sum by (", "sum by by ("),
]


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_deployed_passes(name: str) -> None:
    found = outcome(name, CHECKS[name])
    if found.state == "NOT RUN":
        pytest.skip(found.said)
    assert found.state == "passed", found.said


@pytest.mark.parametrize(("check", "file", "before", "after"), BROKEN)
def test_what_is_broken_turns_red(
    tmp_path: Path, check: Callable[[Path], str], file: str, before: str, after: str
) -> None:
    deploy = shutil.copytree(DEPLOY, tmp_path / "deploy")
    text = (deploy / file).read_text()
    assert before in text
    (deploy / file).write_text(text.replace(before, after))
    try:
        with pytest.raises(Wrong):
            check(deploy)
    except Missing as missing:
        pytest.skip(str(missing))


def watched() -> Iterator[str]:
    """The metrics that alarms, dashboards and the autoscaler read."""
    texts = [
        *expressions(),
        (DEPLOY / "prometheus" / "alarms.yml").read_text(),
        (DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text(),
    ]
    for text in texts:
        yield from METRIC.findall(text)


def test_what_is_watched_is_measured() -> None:
    measured = {"fucina_queue_seconds_mean"}  # made by the adapter
    for metric in registry().collect():
        measured |= {metric.name, f"{metric.name}_total"}
        if metric.type == "histogram":
            measured |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    found = set(watched())
    assert found
    assert found <= measured


def registry() -> CollectorRegistry:
    return Metrics().registry


def test_every_alarm_has_a_test_of_its_own() -> None:
    alarms = re.findall(r"alert: (\w+)", (DEPLOY / "prometheus" / "alarms.yml").read_text())
    tests = (DEPLOY / "prometheus" / "alarms_test.yml").read_text()
    fired = re.findall(r"alertname: (\w+)\n\s+exp_alerts", tests)
    silent = re.findall(r"alertname: (\w+)\}", tests)
    assert set(alarms) == set(fired) == set(silent)


def test_images_are_pinned_and_hold_no_secret() -> None:
    compose_file = (DEPLOY / "compose.yaml").read_text()
    for image in re.findall(r"docker\.io/\S+", compose_file + (DEPLOY / "Dockerfile").read_text()):
        assert re.search(r"@sha256:[0-9a-f]{64}\b", image), image
    for line in (DEPLOY / "env.example").read_text().splitlines():
        assert line.startswith("#") or line.endswith("=")


def test_a_check_that_cannot_run_is_never_passed() -> None:
    def missing() -> str:
        raise Missing("a program")

    assert outcome("x", missing) == Outcome("x", "NOT RUN", "a program")
