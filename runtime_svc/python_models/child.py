# SPDX-License-Identifier: Apache-2.0
"""The process of a Python model: it is told what to load, then answers one request after the other.

    python -P -m runtime_svc.python_models.child SOCKET DESCRIPTORS LIFELINE CONTROL MEMORY_BYTES OPEN_FILES

The numbers are file descriptors and limits that the node gives. Messages: `load`; `infer`, answered by `reply` or
`error`, for a decoupled model by any number of `reply`, each acknowledged by `next` or `stop`, and `done` or `error`;
`turns`, of an iterative model, answered by `turned` or `error`; `unload`, after which the process ends.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dovetail.errors import EngineError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.python_models.child_setup import die_with_node, speak_plainly, take_limits
from runtime_svc.python_models.child_turns import OpenRequests, described
from runtime_svc.python_models.control_page import SeenControlPage
from runtime_svc.python_models.frames import Connection, Message, PeerGoneError
from runtime_svc.python_models.layout import lay_out
from runtime_svc.python_models.run_reading import read_run
from runtime_svc.python_models.shared_pages import SharedPages, worth_sharing
from runtime_svc.python_models.user_model import UserModel
from runtime_svc.python_models.user_objects import Context


@dataclass(slots=True)
class _Memory:
    """Memory shared with the node, one block for each direction; new ones come through a socket of their own."""

    source: socket.socket
    inbound: SharedPages | None = None
    outbound: SharedPages | None = None
    _free_references: int = 0

    @property
    def held(self) -> bool:
        """True if the model's code has kept an input that lies in shared memory, or a part of one: then that memory
        must not be written to again.
        """
        return self.inbound is not None and self.inbound.references > self._free_references

    def adopt(self, brings: list[list[Any]]) -> None:
        """Take over the blocks that a message announces: their directions and sizes."""
        for direction, size in brings:
            _, (descriptor,), _, _ = socket.recv_fds(self.source, 1, 1)
            pages = SharedPages(descriptor, int(size))
            pages.forget_descriptor()
            if direction == "in":
                self.inbound, self._free_references = pages, pages.references
            else:
                self.outbound = pages


@dataclass(slots=True)
class Server:
    """Answers the node.

    Attributes:
        connection: To the node.
        memory: Shared with the node.
        control: Tells which callers have left.
    """

    connection: Connection
    memory: _Memory
    control: SeenControlPage
    _datatypes: dict[str, str] = field(default_factory=dict)
    _loaded: UserModel | None = None
    _open: OpenRequests | None = None
    _batched: bool = False
    _owes_turn: bool = False

    def serve(self) -> None:
        """Until the node says `unload` or is gone."""
        while True:
            try:
                message = self.connection.receive()
            except PeerGoneError:
                return
            self.memory.adopt(message.header.get("brings", []))
            if message.op == "unload":
                self._unload()
                return
            self._answer(message)
            del message

    def _answer(self, message: Message) -> None:
        failure: dict[str, object] = {}
        try:
            if message.op == "load":
                self._load(message.header)
                self.connection.send({"op": "ready"})
            elif message.op == "turns":
                self._run_turns(message)
            elif message.header["decoupled"]:
                self._infer_decoupled(message)
            else:
                self._infer(message)
        except PeerGoneError:
            raise
        except Exception as exc:
            traceback.print_exc()
            failure = {"op": "error", **described(exc)}
        if failure:  # the exception, which holds the inputs, is gone now
            self._wait_for_turn()
            self.connection.send({**failure, "held": self.memory.held})

    @property
    def _model(self) -> UserModel:
        if self._loaded is None:
            raise EngineError("a request came before the model was loaded")
        return self._loaded

    def _load(self, header: dict[str, Any]) -> None:
        context = Context(
            name=header["name"],
            version=header["version"],
            folder=Path(header["folder"]),
            inputs=tuple(TensorSpec.from_json(spec) for spec in header["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec) for spec in header["outputs"]),
            max_batch_size=header["max_batch_size"],
            decoupled=header["decoupled"],
            parameters=header["parameters"],
            instance=header["instance"],
            instances=header["instances"],
            iterative=header["iterative"],
        )
        self._batched = context.max_batch_size > 0
        self._datatypes = {spec.name: spec.datatype for spec in context.outputs}
        self._loaded = UserModel(context)
        self._open = OpenRequests(self._loaded, self.control)

    def _infer(self, message: Message) -> None:
        arrays = self.connection.arrays(message, self.memory.inbound)
        outputs = self._model.infer(read_run(message.header, arrays, self.control))
        arrays.clear()
        self._send({"op": "reply"}, outputs, self._datatypes, alike="reply", ends=True)

    def _run_turns(self, message: Message) -> None:
        if self._open is None:
            raise EngineError("a request came before the model was loaded")
        arrays = self.connection.arrays(message, self.memory.inbound)
        results, outputs = self._open.run(message.header, arrays)
        arrays.clear()
        datatypes = {name: self._datatypes[name.split("/", 2)[2]] for name in outputs}
        alike = None if any(error for _, _, error in results) else ("turned", *map(tuple, results))
        self._send({"op": "turned", "results": results}, outputs, datatypes, alike=alike, ends=True)

    def _infer_decoupled(self, message: Message) -> None:
        arrays = self.connection.arrays(message, self.memory.inbound)
        replies = self._model.replies(read_run(message.header, arrays, self.control))
        arrays.clear()
        outputs: dict[str, Array] = {}
        try:
            for outputs in replies:
                if not self._wait_for_turn():
                    break
                self._send({"op": "reply"}, outputs, self._datatypes, alike="reply")
                self._owes_turn = True
        finally:
            replies.close()
        outputs.clear()
        del replies
        self._wait_for_turn()
        self.connection.send({"op": "done", "held": self.memory.held})

    def _wait_for_turn(self) -> bool:
        """False if the node wants no more replies to this request."""
        if not self._owes_turn:
            return True
        self._owes_turn = False
        return self.connection.receive().op == "next"

    def _send(
        self,
        header: dict[str, object],
        outputs: dict[str, Array],
        datatypes: Mapping[str, str],
        *,
        alike: Hashable,
        ends: bool = False,
    ) -> None:
        """Send outputs; `outputs` is emptied, because one may be a view of an input.

        Args:
            header: Of the message.
            outputs: By name.
            datatypes: By the same names.
            alike: See `Connection.send`.
            ends: The run is done with this.
        """
        body = lay_out(outputs, datatypes)
        pages = self.memory.outbound
        large, shared = worth_sharing(body.size_bytes), False
        if large and pages is not None and body.size_bytes <= pages.size_bytes:
            body.write_to(pages.array)
            shared = True
        elif large:
            header["wants_bytes"] = body.size_bytes
        outputs.clear()
        if ends and self.memory.inbound is not None:
            body = replace(body, pieces=[]) if shared else body.detached()
            header["held"] = self.memory.held
        if alike is not None:
            alike = None if "wants_bytes" in header else (alike, header.get("held"))
        self.connection.send(header, body, shared=shared, alike=alike)

    def _unload(self) -> None:
        if self._loaded is None:
            return
        try:
            self._loaded.unload()
        except Exception:
            traceback.print_exc()


def main(arguments: list[str]) -> None:
    """Serve one node; does not return before it is done."""
    sock, descriptors, lifeline, control, memory_bytes, open_files = map(int, arguments)
    for descriptor in (sock, descriptors, lifeline, control):
        os.set_inheritable(descriptor, False)  # they are not for what the model's code starts
    die_with_node(lifeline)
    take_limits(memory_bytes=memory_bytes, open_files=open_files)
    speak_plainly()
    connection, memory = Connection(socket.socket(fileno=sock)), _Memory(socket.socket(fileno=descriptors))
    try:
        Server(connection, memory, SeenControlPage(control)).serve()
    except PeerGoneError:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
