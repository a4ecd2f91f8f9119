"""The image's recipe: linted, complete, hashed, unprivileged, without secrets. Nothing is built here."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE_FILES = ["compose.yaml", "compose.gpu.yaml"]
SERVICE_KEYS = {
    "image", "build", "init", "read_only", "tmpfs", "cap_drop", "security_opt", "shm_size",
    "environment", "command", "ports", "volumes", "healthcheck", "depends_on", "profiles", "deploy",
}  # fmt: skip
SECRET = re.compile("TOKEN|SECRET|KEY")


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text())


def instructions(word: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith(word + " ")]


def test_hadolint_finds_nothing() -> None:
    tool = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([tool, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_scripts_are_valid_bash() -> None:
    for script in DOCKER.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


def test_every_install_is_hashed_or_the_project_itself() -> None:
    installs = re.findall(r"pip install (.*?)(?:&&|$)", " && ".join(instructions("RUN")))
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps" in install


def test_everything_that_is_copied_exists_and_passes_the_ignore_file() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {name for line in instructions("COPY") for name in line.split()[1:-1]}
    assert copied == allowed
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= copied
    assert all((ROOT / name).exists() for name in copied - {"README.md"})


def test_the_image_runs_unprivileged_and_without_entry_point() -> None:
    assert instructions("USER") == ["USER 10001"]
    assert not instructions("ENTRYPOINT")


@pytest.mark.parametrize("name", [*COMPOSE_FILES, "Dockerfile", "build-local.sh"])
def test_no_registry_host_is_named(name: str) -> None:
    addresses = re.findall(r"https?://([^\s/:\"]+)", (DOCKER / name).read_text())
    assert set(addresses) <= {"store"}


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_services_are_known_and_depend_on_known_ones(name: str) -> None:
    tree = compose(name)
    known = set(compose()["services"])
    assert set(tree["services"]) <= known
    for service, settings in tree["services"].items():
        assert set(settings) <= SERVICE_KEYS, service
        assert set(settings.get("depends_on", {})) <= known


def test_services_are_hardened_and_one_image() -> None:
    services = compose()["services"].values()
    assert len({service["image"] for service in services}) == 1
    for service in services:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_ports_are_published_on_loopback_alone() -> None:
    ports = [
        port for service in compose()["services"].values() for port in service.get("ports", [])
    ]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_ray_asks_for_a_token_and_secrets_come_from_the_environment() -> None:
    services = compose()["services"]
    for name in ("ray-head", "ray-worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
    values = [
        value
        for service in services.values()
        for key, value in service["environment"].items()
        if SECRET.search(key)
    ]
    assert len(values) >= 9
    for value in values:
        without_variables = re.sub(r"\$\{\w+:\?[^}]*\}", "", value)
        assert re.fullmatch(r'[",]*', without_variables), "a secret is written out or has a default"


def test_named_volumes_are_declared() -> None:
    tree = compose()
    mounted = [v for s in tree["services"].values() for v in s.get("volumes", [])]
    named = {volume.split(":")[0] for volume in mounted if re.match(r"\w+:", volume)}
    assert named == set(tree["volumes"])


def test_shards_on_their_way_to_the_store_do_not_lie_in_memory() -> None:
    (image_folders,) = re.findall(r"install -d -o pretrain -g pretrain (.*)", DOCKERFILE)
    for name in ("ray-head", "ray-worker"):
        service = compose()["services"][name]
        folder = service["environment"]["TMPDIR"]
        assert folder not in service["tmpfs"]
        assert folder in image_folders.split(), "the volume would belong to root"
        assert f"scratch:{folder}" in service["volumes"]


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"
