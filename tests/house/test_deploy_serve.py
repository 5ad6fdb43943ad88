"""deploy/ for the server: what can be checked without a cluster, a container engine or a running systemd."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ladderlm.cli.args import parse
from ladderlm.serve.models import Models
from ladderlm.serve.run import ServeConfig

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVE = DEPLOY / "kubernetes" / "serve"
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")


def command(args: list[str]) -> ServeConfig:
    assert args[0] == "serve"
    return parse("serve", ServeConfig, args[1:], description="")


def metric_names() -> set[str]:
    """Every series that the server tells, labelled metrics that nobody has touched yet among them."""
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from ladderlm.serve.meter import Meter
    from ladderlm.serve.metrics import Metrics
    from ladderlm.serve.trail import Trail
    from ladderlm.types import Delta, Token, Usage

    metrics = Metrics(Models(("m",), opener=lambda ref: None), lambda: False)  # type: ignore[arg-type, return-value]
    meter = Meter("m", metrics)
    meter.begin()
    for _ in range(2):
        meter.see(Delta(text="a", tokens=(Token(1),), usage=Usage(1, 2)))
    meter.end()
    metrics.answered(Trail("id", route="/", seconds=1.0))
    text = metrics.text()[0].decode()
    return {s.name for family in text_string_to_metric_families(text) for s in family.samples}


def asked(expression: str) -> set[str]:
    """The series that an expression reads."""
    plain = re.sub(r"\{(?!__name__)[^}]*\}|\$\w+", "", expression)
    named = set(re.findall(r'__name__="([\w:]+)"', expression))
    return named | set(re.findall(r"\b((?:http|process)_\w+)", plain))


# --- Prometheus and Grafana ---------------------------------------------------------------------------------------


@promtool
def test_the_alerts_hold_and_fire_when_they_should() -> None:
    folder = DEPLOY / "prometheus"
    for check in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        subprocess.run(["promtool", *check], cwd=folder, check=True, capture_output=True)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_ask_for_what_is_told() -> None:
    told = metric_names() | {"ladderlm:model_memory_bytes", "vllm:kv_cache_usage_perc"}  # of opened models alone
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana" / "ladderlm.json").read_text())
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found = set().union(*map(asked, expressions))
    assert len(found) >= 15
    assert found <= told
    values = yaml.safe_load((SERVE / "prometheus-adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    assert asked(rule["metricsQuery"]) == {"vllm:num_requests_waiting"} <= told


@promtool
def test_every_expression_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "ladderlm.json").read_text())
    rules = [
        {"record": f"p{panel['id']}:{target['refId']}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", str(file)], check=True, capture_output=True)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {v["name"] for v in dashboard["templating"]["list"]} >= {"datasource", "job", "model"}


# --- Kubernetes ---------------------------------------------------------------------------------------------------


SETS = {"serve.yaml": "Deployment", "serve-stateful.yaml": "StatefulSet"}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((SERVE / name).read_text()))


@pytest.mark.parametrize("version", ["1.30", "1.33"])
@pytest.mark.parametrize("name", SETS)
def test_manifests_are_as_the_schemas_say(name: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    for manifest in manifests(name):
        validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", SETS)
def test_manifests_hold_together(name: str) -> None:
    (made,) = (m for m in manifests(name) if m["kind"] == SETS[name])
    pod = made["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    config = command(container["args"])
    assert config.host == "0.0.0.0"
    assert config.memory is not None
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024
    assert config.memory <= 0.8 * limit
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= config.drain + wait + 5
    assert container["readinessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"  # draining must not look dead
    volumes = [v["name"] for v in pod["spec"]["volumes"]]
    volumes += [claim["metadata"]["name"] for claim in made["spec"].get("volumeClaimTemplates", ())]
    assert sorted(m["name"] for m in container["volumeMounts"]) == sorted(volumes)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    labels = pod["metadata"]["labels"].items()
    assert made["spec"]["selector"]["matchLabels"].items() <= labels
    kinds = [m["kind"] for m in manifests(name)]
    assert {"Service", "PodDisruptionBudget", "NetworkPolicy"} <= set(kinds)
    for manifest in manifests(name):
        spec = manifest["spec"]
        selector = spec.get("podSelector") or spec.get("selector", {})
        assert selector.get("matchLabels", selector).items() <= labels


def test_the_deployment_grows_by_a_series_that_is_told() -> None:
    found = {m["kind"]: m for m in manifests("serve.yaml")}
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    values = yaml.safe_load((SERVE / "prometheus-adapter-values.yaml").read_text())
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == values["rules"]["custom"][0]["name"]["as"]
    assert scaler["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]


def test_the_stateful_set_keeps_a_workspace_for_each_replica() -> None:
    found = manifests("serve-stateful.yaml")
    (made,) = (m["spec"] for m in found if m["kind"] == "StatefulSet")
    services = {m["metadata"]["name"]: m["spec"] for m in found if m["kind"] == "Service"}
    assert services[made["serviceName"]]["clusterIP"] == "None"
    (front,) = (spec for name, spec in services.items() if name != made["serviceName"])
    assert front["sessionAffinity"] == "ClientIP"
    (claim,) = made["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]  # one server has a workspace
    (container,) = made["template"]["spec"]["containers"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == claim["metadata"]["name"])
    home = re.search(r"LADDERLM_HOME=(\S+)", DOCKERFILE)
    assert home is not None
    assert mount["mountPath"] == home[1]
    assert not mount.get("readOnly")
    assert set(made["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    assert "HorizontalPodAutoscaler" not in {m["kind"] for m in found}  # it would put workspaces out of reach


# --- Image, compose, systemd --------------------------------------------------------------------------------------


def test_the_image_is_small_and_not_roots() -> None:
    stages = re.split(r"(?m)^FROM ", DOCKERFILE)[1:]
    assert len(stages) == 2
    assert stages[0].splitlines()[0].endswith(" AS build")
    last = stages[1]
    assert "pip install" not in last
    user = re.search(r"(?m)^USER (\d+)", last)
    assert user is not None
    assert int(user[1]) > 0
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert "HEALTHCHECK" in last
    assert "/health" in last
    words = json.loads(re.findall(r"(?m)^CMD (\[.*\])", last)[-1])
    assert command(words).host == "0.0.0.0"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"(?m)^COPY (?!--from)(.+)$", stages[0]):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored
    extras = re.search(r"ARG EXTRAS=(\S+)", stages[0])
    assert extras is not None
    table = re.findall(r"(?m)^(\w+) = \[", (ROOT / "pyproject.toml").read_text())
    assert set(extras[1].split(",")) <= set(table)


def test_compose_asks_for_a_key_and_mounts_what_is_there() -> None:
    file = DEPLOY / "docker" / "compose.yaml"
    found = yaml.safe_load(file.read_text())
    served = found["services"]["ladderlm"]
    config = command(served["command"])
    assert "LADDERLM_API_KEY:?" in served["environment"]["LADDERLM_API_KEY"]
    assert int(served["stop_grace_period"].removesuffix("s")) > config.drain
    assert (file.parent / served["build"]["context"] / served["build"]["dockerfile"]).resolve().is_file()
    for service in found["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (file.parent / source).exists() if source.startswith(".") else source in found["volumes"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["ladderlm:8080"]
    provision = DEPLOY / "grafana" / "provisioning"
    assert yaml.safe_load((provision / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert yaml.safe_load((provision / "dashboards" / "ladderlm.yaml").read_text())["providers"]


def test_the_systemd_unit_is_right_and_hardened(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "ladderlm.service").read_text()
    line = re.search(r"(?m)^ExecStart=(.+)$", text)
    assert line is not None
    words = line[1].split()
    stop = re.search(r"(?m)^TimeoutStopSec=(\d+)$", text)
    assert stop is not None
    assert int(stop[1]) > command(words[1:]).drain
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "ladderlm.service"
    unit.write_text(text.replace(words[0], "/bin/true"))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "ladderlm.service" not in done.stderr, done.stderr
    subprocess.run(
        [analyze, "security", "--offline=yes", "--threshold=20", str(unit)], check=True, capture_output=True
    )  # of 100, the lower the better
