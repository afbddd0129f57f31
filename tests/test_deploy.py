"""What is in deploy/ fits together, and to the commands and servers that it starts."""

import re
import subprocess
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import yaml

from ovr import Client
from ovr.cli.main import main
from ovr.serving import embedded
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RESOURCES = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]


def read(*parts):
    return yaml.safe_load(DEPLOY.joinpath(*parts).read_text())


def pod():
    return read("kubernetes", "deployment.yaml")["spec"]["template"]


def servers():
    """Return the containers that run Triton, as lists of arguments."""
    return {
        "kubernetes": pod()["spec"]["containers"][0]["args"],
        "kserve": read("kserve", "runtime.yaml")["spec"]["containers"][0]["args"],
        "compose": COMPOSE["triton"]["command"],
    }


def test_the_kustomization_has_every_manifest():
    others = {"kustomization.yaml", "metrics-adapter.yaml"}
    assert set(RESOURCES) == {path.name for path in KUBERNETES.glob("*.yaml")} - others


def test_the_manifests_are_what_the_api_takes():
    validate = pytest.importorskip("kubernetes_validate", reason="needs pip install kubernetes-validate")
    for name in sorted({*RESOURCES} - {"monitor.yaml"}):  # of an operator, whose schema is not among these
        validate.validate(read("kubernetes", name), "1.34", strict=True)
    runtime = read("kserve", "runtime.yaml")["spec"]
    template = {"containers": runtime["containers"], "volumes": runtime["volumes"]}
    validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ovr"}, "spec": template}, "1.34", strict=True)


def test_everything_selects_the_pods_that_are_deployed():
    labels = pod()["metadata"]["labels"]
    deployment = read("kubernetes", "deployment.yaml")
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert read("kubernetes", "service.yaml")["spec"]["selector"] == labels
    assert read("kubernetes", "disruption.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert read("kubernetes", "network.yaml")["spec"]["podSelector"]["matchLabels"] == labels
    assert (
        read("kubernetes", "monitor.yaml")["spec"]["selector"]["matchLabels"]
        == read("kubernetes", "service.yaml")["metadata"]["labels"]
    )
    target = read("kubernetes", "autoscaler.yaml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    ports = {port["name"] for port in pod()["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in read("kubernetes", "service.yaml")["spec"]["ports"]} == ports
    assert {endpoint["port"] for endpoint in read("kubernetes", "monitor.yaml")["spec"]["endpoints"]} <= ports
    rules = read("kubernetes", "network.yaml")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports


def test_volumes_that_are_mounted_are_there_and_bundles_and_keys_are_read_only():
    spec = pod()["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounts = [mount for container in (*spec["initContainers"], *spec["containers"]) for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == volumes
    assert all(mount.get("readOnly") for mount in mounts if mount["name"] in ("bundle", "keys"))
    assert all(mount.get("readOnly") for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "repository")
    generated = {entry["name"] for entry in read("kubernetes", "kustomization.yaml")["configMapGenerator"]}
    assert {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume} == generated


def test_kserve_finds_its_runtime_by_name_and_format():
    runtime, service = read("kserve", "runtime.yaml"), read("kserve", "service.yaml")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [(entry["name"], entry["version"]) for entry in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert service["metadata"]["name"] == "ovr"  # the model that is asked


@pytest.mark.parametrize("where", ["kubernetes", "compose"])
def test_the_publication_is_a_command_that_ovr_takes_and_demands_a_signature(where, capsys):
    args = pod()["spec"]["initContainers"][0]["args"] if where == "kubernetes" else COMPOSE["publish"]["command"]
    assert main([*args, "--cfg", "job"]) == 0
    cfg = yaml.safe_load(capsys.readouterr().out)
    assert cfg["require_signature"] is True
    assert cfg["trusted_keys"] == ["/keys/team.pub"]
    assert cfg["exist_ok"] is True
    assert cfg["serving"]["instance_kind"] == "KIND_GPU"
    (repository,) = {flag.partition("=")[2] for flag in servers()[where] if flag.startswith("--model-repository=")}
    assert cfg["repository"] == repository


@pytest.mark.triton
def test_every_flag_is_one_of_tritons_and_every_metric_is_there(tmp_path):
    server = embedded.install()
    told = subprocess.run([server.tritonserver, "--help"], env=server.environment(), capture_output=True, text=True, check=False)
    text = told.stdout + told.stderr
    for flags in servers().values():
        assert flags[0] == "tritonserver"
        for flag in flags[1:]:
            assert re.search(rf"^\s*{re.escape(flag.partition('=')[0])}\b", text, re.MULTILINE), flag
    query = read("kubernetes", "metrics-adapter.yaml")["rules"]["custom"][0]["metricsQuery"]
    assert (
        read("kubernetes", "metrics-adapter.yaml")["rules"]["custom"][0]["name"]["as"]
        == (read("kubernetes", "autoscaler.yaml")["spec"]["metrics"][0]["pods"]["metric"]["name"])
    )
    names = set(re.findall(r"nv_\w+", query))
    assert len(names) == 2
    publish(small_bundle(tmp_path / "bundle", ("a", "b")), tmp_path / "repository")
    with start(tmp_path / "repository") as running:
        for path in ("/v2/models/ovr/ready", "/v2/health/live"):  # the probes
            assert urlopen(running.http_url + path).status == 200
        with Client(running.http_url) as client:  # by then it listens for metrics too
            client.predict(np.zeros((1, 6), np.float32))
        metrics = urlopen(running.metrics_url).read().decode()
    assert all(f'{name}{{model="ovr_scores"' in metrics for name in names)
