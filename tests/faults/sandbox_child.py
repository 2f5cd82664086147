"""A throw-away child for the sandbox's tests: goes behind its walls as a worker does, then does what it is told.

Run as `python -I sandbox_child.py OPTIONS` with options as JSON; reads one line of JSON from its input, answers with
one. `account` drops to another user first, after loading all it needs: the interpreter may lie where that user can't
look.
"""

from __future__ import annotations

import ctypes
import encodings.idna as _encodings_idna
import fcntl as _fcntl
import importlib
import json
import mmap
import os
import resource as _resource
import socket
import sys
import threading
import time
from typing import Any

OPTIONS: dict[str, Any] = json.loads(sys.argv[1])
sys.path.insert(0, OPTIONS["root"])

from enclaved.sandbox import probes  # noqa: E402
from enclaved.sandbox.enter import Pretend, SandboxError, enter  # noqa: E402
from enclaved.sandbox.profile import Grant, python_profile  # noqa: E402

LOADED_EARLY = (_encodings_idna, _fcntl, _resource)


def become(account: int) -> None:
    os.setgroups([])
    os.setresgid(account, account, account)
    os.setresuid(account, account, account)
    # A change of user hides a process as entering does; a child of that user starts out visible.
    ctypes.CDLL(None).prctl(4, *map(ctypes.c_ulong, (1, 0, 0, 0)))


def go_inside() -> tuple[dict[str, object], float]:
    started = time.perf_counter()
    profile = python_profile(
        OPTIONS.get("kind", "worker"),
        private_folders=[OPTIONS["home"]],
        package_folders=[f"{OPTIONS['root']}/enclaved"],
        extra=[Grant(path, "read") for path in OPTIONS.get("readable", ())],
        extra_calls=frozenset(OPTIONS.get("extra_calls", ())),
    )
    walls = enter(
        profile,
        parent_pid=OPTIONS.get("parent_pid"),
        descriptors=OPTIONS.get("descriptors"),
        pretend=Pretend(
            landlock_abi=OPTIONS.get("landlock_abi"),
            seccomp=OPTIONS.get("seccomp", True),
            machine=OPTIONS.get("machine"),
        ),
    )
    return walls.to_dict(), time.perf_counter() - started


def what_a_worker_needs(targets: dict[str, Any]) -> dict[str, object]:
    """Each entry is what was found, so that the test compares values and not just the absence of an error."""
    found: dict[str, object] = {}

    results: list[int] = []
    threads = [threading.Thread(target=results.append, args=(number * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found["threads"] = sorted(results)

    compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    numbers = (ctypes.c_int * 5)(5, 1, 4, 2, 3)

    def ascending(one: Any, other: Any) -> int:
        return one[0] - other[0]

    ctypes.CDLL(None).qsort(numbers, ctypes.c_size_t(5), ctypes.c_size_t(4), compare_type(ascending))
    found["callbacks"] = list(numbers)

    with open("/dev/null", "w", encoding="utf-8") as null:  # noqa: PTH123
        found["dev_null"] = null.write("nothing")
    found["processors"] = os.cpu_count()
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        found["cpuinfo"] = "processor" in file.read()
    found["slept"] = time.sleep(0.001) is None
    # What Python itself does when a file is opened for text, a folder listed and a module looked for.
    found["library"] = len(os.listdir("/usr/lib")) > 0  # noqa: PTH208
    found["placed"] = bool(os.sched_getaffinity(0)) if sys.platform == "linux" else True
    if sys.platform == "linux":
        os.sched_setaffinity(0, os.sched_getaffinity(0))

    channel = socket.socket(fileno=int(targets["channel"]))
    message, descriptors, _, _ = socket.recv_fds(channel, 64, 4)
    with mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_READ) as mapped:
        found["mapped"] = mapped[:].hex()
    channel.sendall(message.upper())
    found["received"] = message.decode()
    echoed: list[bytes] = []
    reader = threading.Thread(target=lambda: echoed.append(channel.recv(64)))
    reader.start()
    reader.join()
    found["read_in_a_thread"] = echoed[0].decode()

    for name in targets["modules"]:
        importlib.import_module(name)
    if "numpy" in targets["modules"]:
        import numpy as np

        ones = np.ones((300, 300), dtype=np.float32)
        found["numpy"] = float((ones @ ones).sum())
    return found


def generate(targets: dict[str, Any]) -> dict[str, object]:
    """Loads a model through an open file alone and runs one token through it, with two threads."""
    llama_cpp: Any = importlib.import_module("llama_cpp")

    def ignore(level: int, text: bytes, data: Any) -> None:
        pass

    # The library keeps a pointer to it: the name must outlive its last log line.
    log = llama_cpp.llama_log_callback(ignore)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    channel = socket.socket(fileno=int(targets["channel"]))
    _, descriptors, _, _ = socket.recv_fds(channel, 64, 1)
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    library = ctypes.CDLL(llama_cpp.llama_cpp._lib._name)
    load = library.llama_model_load_from_file_ptr
    load.restype = ctypes.c_void_p
    load.argtypes = [ctypes.c_void_p, llama_cpp.llama_model_params]
    model = load(libc.fdopen(descriptors[0], b"rb"), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 64, 2, 2
    context = llama_cpp.llama_init_from_model(model, settings)
    tokens = (llama_cpp.llama_token * 1)(1)
    status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 1))
    return {"status": status, "logit": float(llama_cpp.llama_get_logits(context)[0])}


def main() -> None:
    if (account := OPTIONS.get("account")) is not None:
        become(account)
    if OPTIONS.get("thread_before"):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    sys.platform = OPTIONS.get("platform", sys.platform)
    answer: dict[str, object] = {"pid": os.getpid()}
    if OPTIONS.get("enter", True):
        try:
            answer["walls"], answer["seconds"] = go_inside()
        except SandboxError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "probe":
            outcomes = probes.run(order.get("names", probes.names()), order["targets"])
            print(json.dumps([outcome.to_dict() for outcome in outcomes]), flush=True)
        elif order["do"] == "needs":
            print(json.dumps(what_a_worker_needs(order["targets"])), flush=True)
        elif order["do"] == "generate":
            print(json.dumps(generate(order["targets"])), flush=True)
        elif order["do"] == "read":
            with open(order["path"], "rb") as file:  # noqa: PTH123
                print(json.dumps(len(file.read(64))), flush=True)
        elif order["do"] == "abort":
            os.abort()


main()
