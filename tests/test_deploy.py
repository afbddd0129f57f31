"""What is in deploy/ fits together, and to the commands and servers that it starts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import yaml

from ovr import Client
from ovr.cli.main import main
from ovr.serving.repository import publish
from ovr.serving.server import STOP_TIMEOUT_S
from tests.bundles import small_bundle
from tests.cli.test_main import importable
from tests.native import tritonserver_on_path
from tests.triton.processes import until

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RESOURCES = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]


def read(*parts):
    return yaml.safe_load(DEPLOY.joinpath(*parts).read_text())


def pod():
    return read("kubernetes", "deployment.yaml")["spec"]["template"]


def servers():
    """Return the arguments of the containers that serve."""
    return {
        "kubernetes": pod()["spec"]["containers"][0]["args"],
        "kserve": read("kserve", "runtime.yaml")["spec"]["containers"][0]["args"],
        "compose": COMPOSE["triton"]["command"],
    }


def test_the_kustomization_has_every_manifest():
    others = {"kustomization.yaml", "metrics-adapter.yaml"}
    assert set(RESOURCES) == {path.name for path in KUBERNETES.glob("*.yaml")} - others


@pytest.fixture
def kustomized(tmp_path):
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (tmp_path / "kubernetes" / "team.pub").write_text("a public key")
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path / "kubernetes")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_kustomize_takes_them_and_the_pods_get_the_public_key(kustomized):
    kinds = sorted(manifest["kind"] for manifest in kustomized)
    assert kinds == sorted([*(read("kubernetes", name)["kind"] for name in RESOURCES), "ConfigMap"])
    (keys,) = (manifest for manifest in kustomized if manifest["kind"] == "ConfigMap")
    (deployment,) = (manifest for manifest in kustomized if manifest["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert keys["data"] == {"team.pub": "a public key"}
    assert {"name": "keys", "configMap": {"name": keys["metadata"]["name"]}} in spec["volumes"]
    assert [c["image"] for c in (*spec["initContainers"], *spec["containers"])] == ["ovr-publish:latest", "ovr-triton:latest"]


def test_the_manifests_are_what_the_api_takes(kustomized):
    validate = pytest.importorskip("kubernetes_validate", reason="needs pip install kubernetes-validate")
    for manifest in kustomized:
        if manifest["kind"] != "ServiceMonitor":  # of an operator, whose schema is not among these
            validate.validate(manifest, "1.34", strict=True)
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
    ports.remove("health")  # of the node's probes alone
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
    assert f"repository={cfg['repository']}" in servers()[where]


def grace_s(where):
    """Return how long what serves there has to end."""
    if where == "compose":
        return int(COMPOSE["triton"]["stop_grace_period"].removesuffix("s"))
    return (pod()["spec"] if where == "kubernetes" else read("kserve", "service.yaml")["spec"]["predictor"])[
        "terminationGracePeriodSeconds"
    ]


@pytest.mark.parametrize("where", ["kubernetes", "kserve", "compose"])
def test_what_serves_is_a_command_that_ovr_takes(where, capsys):
    program, *args = servers()[where]
    assert program == "ovr"
    assert main([*args, "--cfg", "job"]) == 0
    cfg = yaml.safe_load(capsys.readouterr().out)
    assert (cfg["host"], cfg["health_host"], cfg["install"]) == ("0.0.0.0", "0.0.0.0", False)
    assert cfg["supervision"]["lame_duck_s"] + cfg["supervision"]["drain_s"] + STOP_TIMEOUT_S < grace_s(where)
    assert cfg["max_request_bytes"] == yaml.safe_load((DEPLOY.parent / "conf" / "gateway.yaml").read_text())["max_body_mb"] << 20
    if where == "compose":
        (test,) = re.findall(r"http://127.0.0.1:(\d+)(/\w+)", COMPOSE["triton"]["healthcheck"]["test"][-1])
        assert test == (str(cfg["health_port"]), "/ready")
        return
    spec = pod()["spec"] if where == "kubernetes" else read("kserve", "runtime.yaml")["spec"]
    (container,) = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (cfg["http_port"], cfg["grpc_port"]) == (ports["http"], ports["grpc"])
    for probe, path in (("readinessProbe", "/ready"), ("livenessProbe", "/live")):
        asked = container[probe]["httpGet"]
        assert (asked["path"], ports.get(asked["port"], asked["port"])) == (path, cfg["health_port"])
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "key")
    assert cfg["key_file"] == f"{mount['mountPath']}/key"
    group = (spec if where == "kubernetes" else read("kserve", "service.yaml")["spec"]["predictor"])["securityContext"]["fsGroup"]
    assert (group, {"name": "key", "secret": {"secretName": "ovr-key", "defaultMode": 0o400}} in spec["volumes"]) == (1000, True)


@pytest.mark.triton
def test_with_a_tritonserver_on_path_it_answers_the_probes_and_guards_what_changes_it(tmp_path):
    """As in NVIDIA's container, with the manifest's own arguments but for places, ports, and the version's floor."""
    publish(small_bundle(tmp_path / "bundle", ("a", "b")), tmp_path / "repository")
    (tmp_path / "key").write_text("k" * 32)
    (tmp_path / "key").chmod(0o400)
    places = {"repository": tmp_path / "repository", "key_file": tmp_path / "key", "supervision.lame_duck_s": 0}
    args = [arg for arg in servers()["kubernetes"] if arg.partition("=")[0] not in places]
    others = {**places, "allow_old_server": "true", **{f"{name}_port": 0 for name in ("http", "grpc", "metrics", "health")}}
    env = importable() | {"PATH": f"{tritonserver_on_path(tmp_path).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", *args, *(f"{name}={value}" for name, value in others.items())]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = dict(line.split() for line in iter(process.stdout.readline, "ready; stop with Ctrl-C\n") if line)
            with Client(told["HTTP"]) as client:
                client.predict(np.zeros((1, 6), np.float32))
            until(lambda: json.load(urlopen(f"{told['health']}/models"))["state"] == "ready")
            for path in ("/live", "/ready"):
                assert urlopen(f"{told['health']}{path}").status == 200
            index = Request(f"{told['HTTP']}/v2/repository/index", data=b"{}")
            with pytest.raises(HTTPError, match="403") as caught:
                urlopen(index)
            caught.value.close()
            index.add_header("ovr-key", "k" * 32)
            assert urlopen(index).status == 200
            metrics = urlopen(told["metrics"]).read().decode()
        finally:
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in stderr) == (0, False), stderr
    rule = read("kubernetes", "metrics-adapter.yaml")["rules"]["custom"][0]
    assert rule["name"]["as"] == read("kubernetes", "autoscaler.yaml")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    names = set(re.findall(r"nv_\w+", rule["metricsQuery"]))
    assert len(names) == 2
    assert all(f'{name}{{model="ovr",' in metrics for name in names)
