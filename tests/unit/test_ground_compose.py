"""docker-compose.yml against the code: every command, option, variable, path and secret in it exists."""

from __future__ import annotations

import importlib
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import flower.app  # defines all of Flower's options
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery as celery_command
from flower.urls import handlers as flower_handlers
from tornado.options import OptionParser, options
from tornado.routing import URLSpec

import worker
from tests.support.compose import (
    COMPOSE,
    OURS,
    ROOT,
    SERVICES,
    copied_from_repository,
    dockerfile,
    health_check_of,
    option,
)
from tests.support.servers import RedisServer
from worker.cli.embedded import SERVER_OPTIONS, ManagedProcess, find_server, free_port
from worker.settings import PoolSettings, Settings

CELERY = sorted(name for name in OURS if SERVICES[name]["command"][0] == "celery")

#: The keys of a service that are used here, by the Compose specification.
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "networks",
    "ports", "restart", "secrets", "security_opt", "stop_grace_period", "user", "volumes",
}  # fmt: skip
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}


def texts_of(value: Any) -> list[str]:
    """Return every text in a service's description."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_of(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [str(value)]


def config_text(name: str) -> str:
    """Return one of the files that the image has in /etc/vmops."""
    return (ROOT / "config" / name).read_text(encoding="utf-8")


def vmops_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Load config/vmops.toml as a container does, with the secrets in a folder of the test's."""
    (tmp_path / "pool_password").write_text("secret\n")
    (tmp_path / "secret_key").write_text("ab" * 32)
    copied = tmp_path / "vmops.toml"
    copied.write_text(config_text("vmops.toml").replace("/run/secrets", str(tmp_path)))
    monkeypatch.setenv("VMOPS_CONFIG", str(copied))
    return Settings()


def parse_celery(words: list[str]) -> tuple[str, dict[str, Any], list[str]]:
    """Parse a `celery` command as celery does; return the subcommand, its options, and what it did not know."""
    assert words[:3] == ["celery", "-A", "worker"]
    name, *rest = words[3:]
    context = celery_command.make_context("celery", words[1:4], resilient_parsing=True)
    command = celery_command.get_command(context, name)
    assert command is not None, f"celery has no command {name}"
    context.obj = CLIContext(app=Celery("vmops"), no_color=True, workdir=None, quiet=True)
    inner = command.make_context(name, rest, parent=context)
    return name, inner.params, list(inner.params.get("tornado_argv", inner.args))


# --- the file itself


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_uses_known_keys_and_has_what_every_service_needs(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= SERVICE_KEYS
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"]
    assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]) <= HEALTH_KEYS
    assert service["cap_drop"] == ["ALL"]
    assert service["init"] is True


def test_the_services_are_those_that_the_documentation_names() -> None:
    assert set(SERVICES) == {"redis", "worker", "beat", "flower", "simulator"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_waits_only_for_services_that_have_a_health_check(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert "healthcheck" in SERVICES[other]
        assert condition == {"condition": "service_healthy"}


def test_volumes_and_networks_are_declared_and_used() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])
    joined = {network for service in SERVICES.values() for network in service["networks"]}
    assert joined == set(COMPOSE["networks"])


def test_ports_are_published_on_the_loopback_address_and_are_those_the_services_listen_on() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    flower_port = option(SERVICES["flower"]["command"], "--port")
    simulator_port = option(SERVICES["simulator"]["command"], "--listen").rpartition(":")[2]
    assert published == {
        "flower": [f"127.0.0.1:{flower_port}:{flower_port}"],
        "simulator": [f"127.0.0.1:{simulator_port}:{simulator_port}"],
    }


# --- secrets


def test_secrets_are_declared_and_used() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_has_the_secrets_that_it_reads_and_no_others(name: str) -> None:
    service = SERVICES[name]
    texts = [text for key, value in service.items() if key != "secrets" for text in texts_of(value)]
    files = [text.rpartition("/")[2] for text in re.findall(r"/etc/vmops/[\w.]+", " ".join(texts))]
    texts += [config_text(file) for file in files]
    assert set(re.findall(r"/run/secrets/(\w+)", " ".join(texts))) == set(service.get("secrets", []))


def test_secret_files_stay_out_of_the_repository_and_the_image() -> None:
    files = [secret["file"].removeprefix("./") for secret in COMPOSE["secrets"].values()]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert all(Path(file).parent == Path("config/secrets") for file in files)
    assert "config/secrets/" in ignored


# --- variables and files


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_variable_is_a_setting(name: str) -> None:
    for variable in SERVICES[name].get("environment", {}):
        prefix, _, rest = variable.partition("_")
        assert prefix == "VMOPS"
        field, *nested = rest.lower().split("__")
        assert variable == "VMOPS_CONFIG" or field in Settings.model_fields
        assert not nested or nested[-1] in PoolSettings.model_fields


def test_the_settings_file_is_valid_and_fits_the_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = vmops_settings(monkeypatch, tmp_path)
    pool = settings.pools["lab"]
    simulate = SERVICES["simulator"]["command"]
    assert urlsplit(settings.broker_url).hostname in SERVICES
    assert urlsplit(pool.url).hostname == "simulator"
    assert urlsplit(pool.url).port == int(option(simulate, "--listen").rpartition(":")[2])
    assert pool.username == option(simulate, "--user")
    assert tomllib.loads(config_text("vmops.toml"))["pools"]["lab"]["password_file"] == option(
        simulate, "--password-file"
    )
    assert SERVICES["flower"]["environment"]["VMOPS_BROKER_URL"] == settings.broker_url
    assert urlsplit(settings.image_store).path in {volume.split(":")[1] for volume in SERVICES["worker"]["volumes"]}


def test_an_unknown_setting_in_the_file_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vmops.toml").write_text("brokerurl = 'redis://redis'\n")
    monkeypatch.setenv("VMOPS_CONFIG", str(tmp_path / "vmops.toml"))
    with pytest.raises(ValueError, match="brokerurl"):
        Settings()


@pytest.mark.parametrize("name", OURS)
def test_a_path_in_a_command_exists_in_the_image(name: str) -> None:
    final = dockerfile()[-1]
    copies = {target.rstrip("/"): source for source, target in copied_from_repository(final)}
    made = re.search(r"install -d -o vmops -g vmops ([^&]*)", " ".join(entry.text for entry in final))
    assert made is not None
    folders = set(made.group(1).split())
    service = {key: value for key, value in SERVICES[name].items() if key != "build"}
    for path in re.findall(r"/(?:etc|var|opt|home)/[\w./-]+", " ".join(texts_of(service))):
        parent, file = path.rsplit("/", 1)
        is_made = path in folders or parent in folders
        assert is_made or (parent in copies and (ROOT / copies[parent] / file).exists()), path


# --- commands


@pytest.mark.parametrize("name", CELERY)
def test_a_celery_command_and_its_options_exist(name: str) -> None:
    command, _, unknown = parse_celery(SERVICES[name]["command"])
    assert command == name
    assert unknown == [] or name == "flower"


def test_an_unknown_celery_option_would_be_seen() -> None:
    with pytest.raises(click.NoSuchOption):
        parse_celery(["celery", "-A", "worker", "beat", "--scheduled", "/tmp/x"])  # noqa: S108 - never opened


def test_celery_finds_the_application() -> None:
    assert worker.celery.main == "vmops"


def test_flowers_options_exist_and_have_their_types() -> None:
    _, _, words = parse_celery(SERVICES["flower"]["command"])
    assert flower.app
    assert {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words} <= set(options.as_dict())
    assert int(option(words, "--port")) > 0


def flower_options(tmp_path: Path, users: str) -> OptionParser:
    """Parse config/flower.py as Flower does, with the secret in a folder of the test's."""
    (tmp_path / "flower_users").write_text(users)
    copied = tmp_path / "flower.py"
    copied.write_text(config_text("flower.py").replace("/run/secrets", str(tmp_path)))
    parser = OptionParser()
    for known in ("basic_auth", "read_only", "tasks_columns"):
        original = options._options[known.replace("_", "-")]
        parser.define(known, type=original.type, multiple=original.multiple)
    parser.parse_config_file(str(copied))
    return parser


def test_flower_lets_only_named_users_look_and_nobody_act(tmp_path: Path) -> None:
    parsed = flower_options(tmp_path, "operator:one\nguest:two\n")
    assert parsed.basic_auth == ["operator:one", "guest:two"]
    assert parsed.read_only is True


def test_flower_does_not_start_open_when_the_secret_is_empty(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="flower_users is empty"):
        flower_options(tmp_path, "\n")


def test_flowers_settings_file_sets_known_options_only() -> None:
    assigned = set(re.findall(r"^(\w+) = ", config_text("flower.py"), re.MULTILINE))
    assert assigned == {"basic_auth", "read_only", "tasks_columns"} <= set(options.as_dict())


def test_the_redis_service_has_the_embedded_servers_guarantees(tmp_path: Path) -> None:
    program, *words = SERVICES["redis"]["command"]
    assert program == "redis-server"
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given == {f"--{key}": value for key, value in SERVER_OPTIONS.items() if key != "daemonize"}
    port = free_port()
    argv = [str(find_server()), *words, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    server = RedisServer(tmp_path)
    server.broker.port = port
    with ManagedProcess("redis", argv, tmp_path / "log") as process, server.client() as client:
        process.wait_until(lambda: is_listening(port), 10)
        for key, value in given.items():
            assert client.config_get(key.removeprefix("--")) == {key.removeprefix("--"): value}


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_simulate_command_and_its_options_exist() -> None:
    app = importlib.import_module("worker.cli.main").app
    program, subcommand, *words = SERVICES["simulator"]["command"]
    assert program == "vmops"
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert subcommand in commands
    helped = subprocess.run([sys.executable, "-m", "simulator", "--help"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"--[a-z][a-z-]*", helped.stdout))
    assert {word for word in words if word.startswith("--")} <= known


# --- health checks


@pytest.mark.parametrize("name", ["flower", "simulator"])
def test_a_health_check_asks_the_services_own_port(name: str) -> None:
    program, flag, source = health_check_of(name)
    assert (program, flag) == ("python", "-c")
    compile(source, name, "exec")
    url = re.search(r"'(http://[^']+)'", source)
    assert url is not None
    port = SERVICES[name]["ports"][0].rpartition(":")[2]
    assert urlsplit(url.group(1)).netloc == f"127.0.0.1:{port}"


def test_flower_has_the_address_that_its_health_check_asks() -> None:
    path = urlsplit(re.findall(r"'(http://[^']+)'", health_check_of("flower")[2])[0]).path
    specs = [handler if isinstance(handler, URLSpec) else URLSpec(*handler) for handler in flower_handlers]
    assert any(spec.regex.fullmatch(path) for spec in specs)


def test_the_workers_health_check_asks_the_worker_by_its_name() -> None:
    name, parameters, rest = parse_celery(health_check_of("worker"))
    assert name == "inspect"
    hostname = option(SERVICES["worker"]["command"], "--hostname")
    assert parameters["command"] == "ping"
    assert parameters["destination"] == [hostname.replace("%h", "$HOSTNAME")]
    assert rest == []


def test_beats_health_check_looks_at_its_schedule() -> None:
    _, parameters, _ = parse_celery(SERVICES["beat"]["command"])
    program, folder, flag, pattern, *_ = health_check_of("beat")
    schedule = Path(parameters["schedule"])
    assert (program, flag) == ("find", "-name")
    assert (folder, pattern) == (str(schedule.parent), f"{schedule.name}*")
