"""Ways out of a real worker, as the daemon's own supervisor starts it: tried inside and outside."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from enclaved.daemon.supervisor.child import Child
from enclaved.daemon.supervisor.launcher import ChildSpec, launch
from enclaved.link.messages import FromChild, Probe, Probed
from enclaved.sandbox import probes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are built on Linux only")

DOZEN = [
    "connect_tcp4",
    "bind_tcp4",
    "send_udp4",
    "connect_abstract_unix",
    "connect_path_unix",
    "read_home_file",
    "list_home",
    "read_other_model",
    "reopen_model_for_writing",
    "create_file",
    "truncate_model",
    "fork",
    "spawn_shell",
    "execute",
    "signal_victim",
    "read_victim_environment",
]


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[dict[str, str | int]]:
    """Things to reach outside the walls, all made for this test."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        name = f"enclave-test-{os.getpid()}"
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + name)
        abstract.listen()
        folder = Path(stack.enter_context(TemporaryDirectory()))
        path_socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        path_socket.bind(str(folder / "socket"))
        path_socket.listen()
        home = tmp_path / "home"
        home.mkdir()
        for file in ("letter", "other.gguf", "model.gguf", "expendable"):
            (home / file).write_text(file)
        (home / "program").touch(mode=0o755)
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"]))
        stack.callback(victim.kill)
        yield {
            "tcp4_port": tcp.getsockname()[1],
            "udp4_port": udp.getsockname()[1],
            "abstract_socket": name,
            "path_socket": str(folder / "socket"),
            "home": str(home),
            "home_file": str(home / "letter"),
            "other_model": str(home / "other.gguf"),
            "model": str(home / "model.gguf"),
            "expendable": str(home / "expendable"),
            "program": str(home / "program"),
            "victim_pid": victim.pid,
            "temporary_folder": str(folder),
        }


def inside(names: list[str], targets: dict[str, str | int], kind: str) -> list[dict[str, object]]:
    """What the attempts come to in a child that the daemon's launcher started."""

    async def ask() -> list[dict[str, object]]:
        loop = asyncio.get_running_loop()
        spec = ChildSpec(kind, ("enclaved", "enclave"))  # type: ignore[arg-type]
        child = Child(launch(spec, os.environ, [str(Path.home())]), loop)
        answer: asyncio.Future[list[dict[str, object]]] = loop.create_future()

        def received(message: FromChild) -> None:
            if isinstance(message, Probed):
                answer.set_result(message.outcomes)

        child.on_message = received
        try:
            await child.wait_greeted()
            child.send(Probe(names, dict(targets)))
            return await asyncio.wait_for(answer, 30)
        finally:
            await child.stop(5)

    return asyncio.run(ask())


def outside(targets: dict[str, str | int]) -> list[dict[str, object]]:
    """What the dozen comes to in a process of its own without walls."""
    program = (
        "import json, sys; from enclaved.sandbox import probes; names, targets = json.load(sys.stdin); "
        "print(json.dumps([outcome.to_dict() for outcome in probes.run(names, targets)]))"
    )
    asked = json.dumps([DOZEN, targets])
    ran = subprocess.run([sys.executable, "-c", program], input=asked, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.parametrize("kind", ["worker", "inspector"])
def test_what_works_outside_is_refused_inside(targets: dict[str, str | int], kind: str) -> None:
    names = [name for name in probes.names() if set(probes.needs(name)) <= targets.keys()]
    assert set(DOZEN) <= set(names), sorted(set(DOZEN) - set(names))
    refused = {str(outcome["name"]): outcome for outcome in inside(names, targets, kind)}
    assert refused.keys() == set(names)
    for outcome in outside(targets):
        assert outcome["allowed"], f"this fails outside as well, so it proves nothing: {outcome}"
    for name, outcome in refused.items():
        if name not in probes.OPEN_BY_DESIGN:
            assert not outcome["allowed"], f"{name} got out of the {kind}: {outcome}"
