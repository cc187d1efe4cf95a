"""Checks of files, which need no image: Dockerfile, compose, Kubernetes, Prometheus, Grafana."""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.checking import DEPLOY, Missing, Wrong, program, run

COMPOSE = (("compose.yaml",), ("compose.yaml", "compose.gpu.yaml"))
_VARIABLE = re.compile(r"\{\{ (\w+) \}\}")


def dockerfile(deploy: Path = DEPLOY) -> str:
    run(program("hadolint"), deploy / "Dockerfile")
    return "hadolint has no complaint"


def compose(deploy: Path = DEPLOY) -> str:
    for files in COMPOSE:
        composed(deploy, files)
    complete = made_secrets()
    for secret in complete:
        rest = {name: value for name, value in complete.items() if name != secret}
        try:
            composed(deploy, COMPOSE[0], rest)
        except Wrong:
            continue
        raise Wrong(f"it comes up without {secret}")
    return "valid with and without GPUs, refused without any one of its secrets"


def composed(
    deploy: Path = DEPLOY,
    files: tuple[str, ...] = COMPOSE[0],
    more: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The services that compose files describe; `more` are variables, secrets if None are drawn."""
    engine = program("docker-compose")
    version = run(engine, "version", "--short").strip()
    if version.startswith("1."):
        raise Missing(f"docker-compose is {version}: version 2 is needed, Debian's from trixie on")
    named = [part for file in files for part in ("--file", str(deploy / file))]
    environment = {"PATH": os.environ["PATH"], **(made_secrets() if more is None else more)}
    # Not the secrets that lie in deploy/.env.
    command = (engine, *named, "--env-file", os.devnull, "config", "--format", "json")
    return json.loads(run(*command, environment=environment, folder=deploy))


def made_secrets() -> dict[str, str]:
    """Secrets of a stack that lives as long as a check."""
    return {
        "POSTGRES_PASSWORD": secrets.token_hex(8),
        "PREFECT_AUTH": f"check:{secrets.token_hex(8)}",
        "GRAFANA_PASSWORD": secrets.token_hex(8),
    }


def kubernetes(deploy: Path = DEPLOY) -> str:
    validate = program("kubernetes-validate")
    folder = deploy / "kubernetes"
    trees = [*sorted((folder / "overlays").iterdir()), folder / "training"]
    manifests = [run(program("kubectl"), "kustomize", tree) for tree in trees]
    manifests.append(json.dumps(prefect_job(folder / "prefect" / "job-template.json")))
    with tempfile.TemporaryDirectory(prefix="fucina-") as scratch:
        for place, manifest in enumerate(manifests):
            path = Path(scratch) / f"{place}.yaml"
            path.write_text(manifest)
            run(validate, "--strict", path)
    return f"{len(trees)} kustomizations and the job template fit the schemas"


def prefect_job(template: Path) -> dict[str, Any]:
    """The job that a work pool's template makes where a flow run leaves every default."""
    pool = json.loads(template.read_text())
    defaults = {
        name: variable.get("default", "value")
        for name, variable in pool["variables"]["properties"].items()
    }

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        if isinstance(value, str):
            if whole := _VARIABLE.fullmatch(value):
                # What stands for the worker's own command line is a list by then.
                return ["prefect"] if whole[1] == "command" else environment(whole[1])
            return _VARIABLE.sub(lambda found: str(defaults[found[1]]), value)
        return value

    def environment(name: str) -> Any:
        return [] if name == "env" else defaults[name]

    job = filled(pool["job_configuration"]["job_manifest"])
    # The cluster names what only has a prefix.
    job["metadata"]["name"] = job["metadata"].pop("generateName") + "1"
    return job


def prometheus(deploy: Path = DEPLOY) -> str:
    promtool, folder = program("promtool"), deploy / "prometheus"
    run(promtool, "check", "config", folder / "prometheus.yml")
    run(promtool, "test", "rules", folder / "alarms_test.yml")
    return "the configuration is valid, and each alarm fires and is silent where it should"


def grafana(deploy: Path = DEPLOY) -> str:
    promtool = program("promtool")
    rules = [
        {"record": f"panel:{place}", "expr": re.sub(r"\$__rate_interval", "1m", expression)}
        for place, expression in enumerate(expressions(deploy))
    ]
    with tempfile.TemporaryDirectory(prefix="fucina-") as scratch:
        path = Path(scratch) / "panels.yml"
        # JSON is YAML.
        path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
        run(promtool, "check", "rules", path)
    return f"the queries of {len(rules)} curves are valid; Grafana itself is not run"


def expressions(deploy: Path = DEPLOY) -> Iterator[str]:
    """Every query of every dashboard."""
    for path in sorted((deploy / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield from (one["expr"] for one in panel.get("targets", ()))


CHECKS: dict[str, Callable[[], str]] = {
    "Dockerfile": dockerfile,
    "compose": compose,
    "Kubernetes": kubernetes,
    "Prometheus": prometheus,
    "Grafana": grafana,
}
