# SPDX-License-Identifier: Apache-2.0
"""One process of a Python model as the node sees it: started, spoken to, ended.

It knows messages, not requests, and is never started again: that is `session`'s business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import IO, Any

import runtime_svc
from dovetail.errors import ERROR_CLASSES, DovetailError, EngineError, OverLimitError, UnavailableError, brief
from dovetail.tensor import Array
from runtime_svc.python_models.child_end import end_descriptor
from runtime_svc.python_models.child_output import OutputLog, follow_output
from runtime_svc.python_models.control_page import ControlPage
from runtime_svc.python_models.frames import Connection, Message, PeerGoneError, PeerSilentError
from runtime_svc.python_models.layout import lay_out
from runtime_svc.python_models.limits import ProcessLimits
from runtime_svc.python_models.shared_pages import AVAILABLE, MOST_BYTES, SharedPages, worth_sharing

_PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH",
    "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
"""Environment that a process gets: what libraries need to find their files, and none of the node's own, which may
hold passwords."""

_LAST_WAIT_S = 5.0  # a killed process is gone long before


class ChildDiedError(EngineError):
    """The process ended while it should have answered."""


class ChildProcess:
    """A running process. Its connection is used by one thread at a time, `kill` and `cancel` by any.

    Args:
        folder: With the model's file; the process works in it.
        model: Name, for messages and logs.
        instance: Number of the process among the model's.
        limits: What it may take.
        environ: Environment of the node.
        threads: For libraries that ask the environment; 0: as they like.

    Raises:
        UnavailableError: The system starts no more processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        instance: int,
        limits: ProcessLimits,
        environ: Mapping[str, str],
        threads: int = 0,
    ) -> None:
        self._model = model
        self._inbound: SharedPages | None = None
        self._outbound: SharedPages | None = None
        self._spoiled = False
        self._wanted_bytes = 0
        self._control = ControlPage()
        self._ended, self._reaping = threading.Event(), threading.Lock()
        ours, theirs = socket.socketpair()
        self._giving, taking = socket.socketpair()
        reading, self._lifeline = os.pipe()
        descriptors = (theirs.fileno(), taking.fileno(), reading, self._control.descriptor)
        numbers = [str(number) for number in (*descriptors, limits.memory_mb << 20, limits.open_files)]
        argv = [sys.executable, "-P", "-m", "runtime_svc.python_models.child", *numbers]
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=folder,
                env=_environment(environ, limits.environment, threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,
            )
        except OSError as exc:
            ours.close()
            self._giving.close()
            self._control.close()
            os.close(self._lifeline)
            raise UnavailableError(f"the process of Python model '{model}' cannot be started: {exc.strerror}") from exc
        finally:
            theirs.close()
            taking.close()
            os.close(reading)
        self._connection = Connection(ours)
        self._follow(instance)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def load(self, header: Mapping[str, object], *, timeout_s: float) -> None:
        """Have the model loaded.

        Raises:
            DovetailError: Its code raised that.
            EngineError: Its code raised something else, or it took too long.
        """
        self._connection.set_timeout(timeout_s)
        try:
            self._connection.send({"op": "load", **header})
            reply = self._connection.receive()
        except PeerSilentError as exc:
            self.kill()
            raise EngineError(f"Python model '{self._model}' was not loaded within {timeout_s:g} s") from exc
        except PeerGoneError as exc:
            raise self._died("while it was loaded") from exc
        if reply.op != "ready":
            raise self.error(reply.header)
        self._connection.set_timeout(None)

    def ask(
        self,
        header: Mapping[str, object],
        feeds: Mapping[str, Array],
        datatypes: Mapping[str, str],
        *,
        alike: Hashable = None,
    ) -> None:
        """Send a request.

        Args:
            header: About it.
            feeds: Its tensors.
            datatypes: Of the tensors, by name.
            alike: See `Connection.send`.

        Raises:
            ChildDiedError: The process is gone.
        """
        body = lay_out(feeds, datatypes)
        shared = worth_sharing(body.size_bytes)
        try:
            brings = self._give_pages(body.size_bytes if shared else 0)
            if shared and self._inbound is not None:
                body.write_to(self._inbound.array)
            if brings:
                header, alike = {**header, "brings": brings}, None
            self._connection.send(header, body, shared=shared, alike=alike)
        except PeerGoneError as exc:
            raise self._died("before it could take the request") from exc

    def answer(self, timeout_s: float | None = None) -> Message:
        """The next message.

        Args:
            timeout_s: Longest wait; then the process is ended.

        Raises:
            ChildDiedError: The process is gone, or was ended.
            DovetailError: The model's code raised that, or what came is no message of ours.
        """
        self._connection.set_timeout(timeout_s)
        try:
            message = self._connection.receive()
        except PeerSilentError as exc:
            self.kill()
            raise ChildDiedError(
                f"Python model '{self._model}' gave no reply within {timeout_s or 0:g} s, and its process was ended"
            ) from exc
        except PeerGoneError as exc:
            raise self._died("while it served this request") from exc
        except DovetailError as exc:
            self.kill()  # nobody knows where its next message begins
            raise ChildDiedError(f"the process of Python model '{self._model}' sent no message of ours: {exc}") from exc
        self._spoiled = self._spoiled or bool(message.header.get("held"))
        wanted = message.header.get("wants_bytes", 0)
        if isinstance(wanted, int) and 0 < wanted <= MOST_BYTES and AVAILABLE:
            self._wanted_bytes = wanted
        if message.op == "error":
            raise self.error(message.header)
        return message

    def arrays(self, message: Message) -> dict[str, Array]:
        """Tensors of a reply; the caller's.

        Raises:
            EngineError: Bytes and shapes do not fit each other.
        """
        try:
            arrays = self._connection.arrays(message, self._outbound)
        except DovetailError as exc:
            raise EngineError(f"Python model '{self._model}' sent outputs that cannot be read: {exc}") from exc
        if message.body is not None:
            return arrays
        return {name: array if array.dtype == object else array.copy() for name, array in arrays.items()}

    def acknowledge(self, *, more: bool) -> None:
        """Ask for the next reply of a decoupled model, or for no more.

        Raises:
            ChildDiedError: The process is gone.
        """
        try:
            self._connection.send({"op": "next" if more else "stop"}, alike=more)
        except PeerGoneError as exc:
            raise self._died("between two replies") from exc

    def error(self, described: Mapping[str, Any]) -> DovetailError:
        """What the model's code raised, as a message describes it."""
        kind, text = str(described.get("type", "error"))[:200], brief(str(described.get("text", "")))
        own = ERROR_CLASSES.get(str(described.get("code", "")))
        if own is not None:
            return own(f"Python model '{self._model}': {text}")
        return EngineError(f"Python model '{self._model}' failed: {kind}: {text}")

    def cancel(self, number: int, caller: int | None = None) -> None:
        """Show the model's code that this caller of run `number` has left; None: that nobody waits for it."""
        self._control.mark(number, caller)

    def wait(self) -> str:
        """Wait until the process has ended; how it did, for people."""
        self._ended.wait()
        return _ending(self._process.returncode)

    def unload(self, timeout_s: float) -> None:
        """Have the model tidy up, then end the process, by force if it takes longer."""
        self._connection.set_timeout(timeout_s)
        with contextlib.suppress(PeerGoneError, PeerSilentError):
            self._connection.send({"op": "unload"})
        self._ended.wait(timeout_s)
        self.kill()
        self.release()

    def kill(self) -> None:
        """End the process, and what it started, now."""
        with self._reaping:
            if not self._ended.is_set():  # else its number may be another one's
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
        self._ended.wait(_LAST_WAIT_S)

    def release(self) -> None:
        """Close what the node holds of a process that has ended; may be called more than once, by any thread."""
        with self._reaping:
            if self._lifeline < 0:
                return
            lifeline, self._lifeline = self._lifeline, -1
        os.close(lifeline)
        self._connection.close()
        self._giving.close()
        self._control.close()

    def _give_pages(self, inbound_bytes: int) -> list[tuple[str, int]]:
        """New shared memory for inputs, if that much does not fit what there is, and for outputs, if they asked."""
        brings: list[tuple[str, int]] = []
        if inbound_bytes and (self._inbound is None or self._spoiled or self._inbound.size_bytes < inbound_bytes):
            self._inbound, self._spoiled = self._give("in", inbound_bytes, brings), False
        if self._wanted_bytes:
            self._outbound, self._wanted_bytes = self._give("out", self._wanted_bytes, brings), 0
        return brings

    def _give(self, direction: str, size_bytes: int, brings: list[tuple[str, int]]) -> SharedPages:
        try:
            pages = SharedPages.create(size_bytes)
        except OSError as exc:
            raise OverLimitError(f"no memory is left for {size_bytes} bytes of tensors: {exc.strerror}") from exc
        try:
            socket.send_fds(self._giving, [b"p"], [pages.descriptor])
        except OSError as exc:
            raise PeerGoneError("the other side is gone") from exc
        finally:
            pages.forget_descriptor()
        brings.append((direction, pages.size_bytes))
        return pages

    def _died(self, when: str) -> ChildDiedError:
        if self._ended.wait(_LAST_WAIT_S):
            how = _ending(self._process.returncode)
        else:
            self.kill()
            how = "closed its connection"
        return ChildDiedError(f"the process of Python model '{self._model}' {how} {when}")

    def _reap(self) -> None:
        """The process has ended: end what it started and has left behind, and let the system forget it."""
        with self._reaping:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._ended.set()

    def _follow(self, instance: int) -> None:
        streams: dict[str, IO[bytes] | None] = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        pipes = {name: pipe for name, pipe in streams.items() if pipe is not None}
        threading.Thread(
            target=follow_output,
            args=(pipes, OutputLog(self._model, instance), end_descriptor(self._process.pid), self._reap),
            name=f"output-{self._model}-{instance}",
            daemon=True,
        ).start()


def _environment(environ: Mapping[str, str], more: tuple[str, ...], threads: int) -> dict[str, str]:
    passed = {name: environ[name] for name in (*_PASSED_ON, *more) if name in environ}
    here = str(Path(runtime_svc.__file__).resolve().parents[1])
    passed["PYTHONPATH"] = os.pathsep.join(part for part in (here, passed.get("PYTHONPATH", "")) if part)
    passed["PYTHONDONTWRITEBYTECODE"] = "1"  # the folder stays as its operator left it
    if threads:
        passed.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))
    return passed


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"was killed by signal {name}"
