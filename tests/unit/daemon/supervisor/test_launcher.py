"""What a child is given when it is started: nothing of the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.daemon.supervisor.launcher import ChildSpec, child_environment, launch, package_folders

SECRETS = {
    "HF_TOKEN": "secret",
    "HUGGING_FACE_HUB_TOKEN": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HTTP_PROXY": "http://secret",
    "https_proxy": "http://secret",
    "HOME": "/home/secret",
    "SSH_AUTH_SOCK": "/run/secret",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/secret",
    "ENCLAVE_HOME": "/home/secret",
    "PYTHONPATH": "/home/secret",
    "LD_PRELOAD": "/home/secret.so",
    "USER": "secret",
}


def test_no_tokens_no_proxies_no_home() -> None:
    environment = child_environment(SECRETS | {"PATH": "/usr/bin", "LANG": "C"})
    assert "secret" not in str(environment)
    assert (environment["PATH"], environment["LANG"]) == ("/usr/bin", "C")
    assert not Path(environment["HOME"]).exists()


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=10)))
def test_only_names_that_are_on_the_list_pass(environment: dict[str, str]) -> None:
    made = child_environment({})
    passed = {name for name in child_environment(environment) if name not in made}
    assert passed <= {"PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES"}


def test_telemetry_is_off_and_the_hub_is_offline() -> None:
    environment = child_environment({"HF_HUB_OFFLINE": "0", "ORT_DISABLE_TELEMETRY": "0"})
    assert (environment["HF_HUB_OFFLINE"], environment["ORT_DISABLE_TELEMETRY"]) == ("1", "1")


def test_folders_of_packages_are_found_without_importing_them() -> None:
    (folder,) = package_folders(["hypothesis"])
    assert (Path(folder) / "__init__.py").is_file()
    assert package_folders(["no_such_package_at_all"]) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no inherited sockets of this kind")
def test_a_launched_child_gets_one_socket_and_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        seen.update(options, command=command)
        return real([sys.executable, "-c", ""], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    launched = launch(ChildSpec("worker", ("hypothesis",), ("json",)), SECRETS, ["/home/secret"])
    with launched.process, launched.connection:
        said = json.loads(seen["command"][-2])
        assert seen["pass_fds"] == (said["channel"],)
        assert seen["env"] == child_environment(SECRETS)
        assert {"-I", "-S"} <= set(seen["command"])
        assert (said["kind"], said["preload"], said["parent"]) == ("worker", ["json"], os.getpid())
        assert said["private_folders"] == ["/home/secret"]
        assert not os.get_inheritable(launched.connection.fileno())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
def test_a_launch_that_fails_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def popen(*_: Any, **__: Any) -> Any:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", popen)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="temporarily"):
        launch(ChildSpec("worker", ()), {}, [])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
