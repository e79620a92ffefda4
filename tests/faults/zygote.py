# SPDX-License-Identifier: Apache-2.0
"""Starts real processes of the mesh in milliseconds: imports everything once, then forks on request.

Run as `python -m tests.faults.zygote SOCKET`. A test connects and sends orders, one JSON object on a line, such as
`{"id": 7, "program": "worker", "environ": {…}, "log": "…"}`, or "exec" with "argv". It is answered by
`{"id": 7, "pid": 9}` and later `{"ended": 9, "status": -9}`. What a connection started dies when the connection closes,
and everything dies with the zygote. It has one thread and no event loop, so forking it is safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tests.faults import service_process, worker_process

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROGRAMS: dict[str, Callable[[], int]] = {"worker": worker_process.main, "service": service_process.main}


class Customer:
    """One connection and what it started."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.running: set[int] = set()
        self._unread = b""

    def serve(self) -> bool:
        """Do what it ordered; False when it has left."""
        try:
            data = self.connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return False
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _become(order)
            self.running.add(pid)
            self.say({"id": order["id"], "pid": pid})
        return True

    def say(self, answer: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(answer).encode() + b"\n")

    def leave(self) -> None:
        """Kill what it started; the reaper does the rest."""
        self.connection.close()
        for pid in self.running:
            for kill in (os.killpg, os.kill):  # the group may not be there yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)


def main(path: str) -> NoReturn:
    """Serve until killed."""
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    customers: dict[int, Customer] = {}
    while True:
        for key, _ in selector.select():
            if key.fd == listening.fileno():
                connection, _ = listening.accept()
                selector.register(connection, selectors.EVENT_READ)
                customers[connection.fileno()] = Customer(connection)
            elif key.fd == woken.fileno():
                woken.recv(4096)
            elif not customers[key.fd].serve():
                selector.unregister(key.fd)
                customers.pop(key.fd).leave()
        _reap(customers)


def _become(order: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.closerange(3, 256)
        os.environ.update(order["environ"])
        if order["program"] == "exec":
            os.execv(order["argv"][0], order["argv"])
        code = _PROGRAMS[order["program"]]()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _reap(customers: dict[int, Customer]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        for customer in customers.values():
            if pid in customer.running:
                customer.running.discard(pid)
                customer.say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main(sys.argv[1])
