"""compose.yaml starts what is there, with flags that are there, and shows one port."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# Of the Compose Specification, those that are used here.
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image",
    "init", "networks", "ports", "read_only", "restart", "security_opt", "stop_grace_period",
    "tmpfs", "volumes",
}  # fmt: skip
TOP_KEYS = {"services", "networks", "volumes"}


def with_defaults(value: Any) -> Any:
    """Replace `${NAME:-default}` as Compose does where no variable is set."""
    if isinstance(value, dict):
        return {key: with_defaults(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_defaults(each) for each in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


def load(name: str) -> dict[str, Any]:
    return with_defaults(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return load("compose.yaml")["services"]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_only_keys_of_the_specification(name: str) -> None:
    data = load(name)
    assert {key for key in data if not key.startswith("x-")} <= TOP_KEYS
    for service in data["services"].values():
        assert set(service) <= SERVICE_KEYS
    assert "$" not in str(data)


def test_commands_are_understood_by_their_modules(services: dict[str, Any]) -> None:
    started = []
    for name, service in services.items():
        if "command" not in service:
            continue
        python, flag, module, *arguments = service["command"]
        assert (python, flag) == ("python", "-m")
        parser = importlib.import_module(module).build_parser()
        args = parser.parse_args(arguments)
        assert args.host == "0.0.0.0"
        started.append(module.rpartition(".")[2])
        for address in (
            getattr(args, "controller_address", ""),
            getattr(args, "controller_url", ""),
        ):
            assert address in ("", "http://controller:21001")
        if module.endswith("model_worker"):
            assert args.worker_address == f"http://{name}:{args.port}"
            assert service["stop_grace_period"] == "45s"
            assert args.drain_timeout < 45
    assert sorted(started) == [
        "controller", "gradio_web_server", "model_worker", "model_worker", "openai_api",
    ]  # fmt: skip


def test_one_port_is_shown(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert services["proxy"]["ports"] == ["8080:8080"]
    for name, service in services.items():
        if name != "proxy":
            assert service["networks"] == ["inside"]
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]


def test_what_is_named_exists(services: dict[str, Any]) -> None:
    data = load("compose.yaml")
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services)
        assert set(service["networks"]) <= set(data["networks"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in data["volumes"] or source == "./runs" or (ROOT / source).exists()
    proxied = re.findall(r"set \$\w+ http://(\w+):(\d+);", (ROOT / "docker/nginx.conf").read_text())
    for host, port in proxied:
        assert f"--port={port}" in services[host]["command"]
    assert {host for host, _ in proxied} == {"api", "page"}


def test_gpus_belong_to_the_workers() -> None:
    workers = load("compose.gpu.yaml")["services"]
    assert set(workers) == {"worker-1", "worker-2"}
    ids = [
        worker["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for worker in workers.values()
    ]
    assert ids == [["0"], ["1"]]


def test_image_copies_what_there_is_and_what_it_may() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("COPY "):
            *sources, _ = line.split()[1:]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed, source
    text = "\n".join(lines)
    assert "USER llava" in text
    assert "scripts/setup.sh --venv /opt/venv --extras serve" in text
