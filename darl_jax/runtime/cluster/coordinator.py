"""The process beside process 0 of a cluster that outlives it and can say who failed first.

All members connect to it and speak in lines of JSON. A member says who it is; once all are there
they are told the port of JAX's coordination service, which runs in here too. From then on a member
says why it failed or that it leaves, and all are told of the first failure. A connection that ends
without a word is a process that was killed: the kernel closes it at once, and keep-alive packets
find a machine or a network that is gone.

Were the service inside process 0, as it is by default, then the end of process 0 would make JAX's
C++ client abort all others, without a word of what happened.

It is started by its path, with nothing but the standard library and jaxlib, in 0.1 s.
"""

import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from jaxlib import _jax  # type: ignore[attr-defined]  # a compiled module

# What is waited for a better cause when a process tells that others do not answer: longer than
# the keep-alive packets take.
SUSPICION_SECONDS = 10.0
# What the members have to end in once the failure is told.
GRACE_SECONDS = 10.0
READY = "ready"
KILLED: dict[str, object] = {
    "reason": "it was killed, it crashed, or its machine does not answer any more",
    "code": 1,
}
KEEP_ALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 5}


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel find within 8 s that the other machine does not answer any more."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@dataclass
class Member:
    """A connection; it has no number until it said who it is."""

    connection: socket.socket
    process: int | None = None
    received: bytes = b""
    left: bool = False


@dataclass
class Hub:
    """Brings all members together, and tells them of the first failure."""

    listener: socket.socket
    num_processes: int
    service_port: int
    join_seconds: float
    members: list[Member] = field(default_factory=list)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    joined: set[int] = field(default_factory=set)
    complete: bool = False
    failure: dict[str, object] | None = None
    suspicion: dict[str, object] | None = None
    suspicion_ends: float = 0.0
    deadline: float | None = None

    def serve(self, parent: int) -> None:
        """Returns when all members have ended; `parent` is a pipe that closes with process 0."""
        join_ends = time.monotonic() + self.join_seconds
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(parent, selectors.EVENT_READ)
        while self.known() or not (self.complete or self.failure):
            for key, _ in self.selector.select(timeout=0.25):
                if key.data is not None:
                    self.read(key.data)
                elif key.fileobj is self.listener:
                    self.accept()
                else:
                    # It waits for this process when all is well.
                    self.selector.unregister(parent)
                    self.tell(KILLED | {"process": 0})
            now = time.monotonic()
            if now > join_ends and not self.complete:
                self.tell({"process": None, "reason": self.missing(), "code": 1})
            if self.suspicion is not None and now > self.suspicion_ends:
                self.tell(self.suspicion)
            if self.deadline is not None and now > self.deadline:
                return

    def known(self) -> list[Member]:
        """Whoever said who it is; anybody may connect to a port."""
        return [member for member in self.members if member.process is not None]

    def missing(self) -> str:
        """Says which processes did not come."""
        absent = sorted(set(range(self.num_processes)) - self.joined)
        names = ", ".join(map(str, absent[:8])) + (" ..." if len(absent) > 8 else "")
        return (
            f"{len(absent)} of {self.num_processes} processes did not come within "
            f"{self.join_seconds:g} s: {names}"
        )

    def accept(self) -> None:
        """Lets a member in."""
        connection, _ = self.listener.accept()
        keep_alive(connection)
        member = Member(connection)
        self.members.append(member)
        self.selector.register(connection, selectors.EVENT_READ, member)

    def read(self, member: Member) -> None:
        """Takes what a member says, or its end."""
        try:
            received = member.connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            self.close(member)
            return
        *lines, member.received = (member.received + received).split(b"\n")
        for line in lines:
            try:
                self.hear(member, json.loads(line))
            except (ValueError, KeyError, TypeError):
                # Whoever this is, it is none of ours.
                self.close(member)
            if member not in self.members:
                return

    def hear(self, member: Member, message: dict[str, object]) -> None:
        """One message of a member."""
        if member.process is None:
            self.join(member, int(str(message["process"])), int(str(message["num_processes"])))
        elif message.get("left"):
            member.left = True
        else:
            failure = {
                "process": member.process,
                "reason": str(message["reason"]),
                "code": int(str(message["code"])),
            }
            if not message["suspect"]:
                self.tell(failure)
            elif self.suspicion is None and self.failure is None:
                self.suspicion = failure
                self.suspicion_ends = time.monotonic() + SUSPICION_SECONDS

    def join(self, member: Member, process: int, num_processes: int) -> None:
        """Takes a member in; the last one completes the cluster."""
        if self.complete and self.failure is None:
            # It gets no number, so that its end is no failure of this run.
            reason = "a run with all its processes is at this address already"
            self.send(member, {"process": None, "reason": reason, "code": 1})
            self.close(member)
            return
        member.process = process
        if self.failure is not None:
            self.send(member, self.failure)
        elif process in self.joined or num_processes != self.num_processes:
            reason = (
                f"there are two with this number, or it was told of {num_processes} processes "
                f"where process 0 was told of {self.num_processes}"
            )
            self.tell({"process": process, "reason": reason, "code": 2})
        self.joined.add(process)
        if len(self.joined) == self.num_processes and self.failure is None:
            self.complete = True
            for each in self.known():
                self.send(each, {"port": self.service_port})

    def close(self, member: Member) -> None:
        """The end of a connection; of a member that did not take its leave it is a failure."""
        self.selector.unregister(member.connection)
        member.connection.close()
        self.members.remove(member)
        if member.process is not None and not member.left:
            self.tell(KILLED | {"process": member.process})

    def tell(self, failure: dict[str, object]) -> None:
        """Tells all of the first failure; of later ones nobody hears."""
        if self.failure is not None:
            return
        self.failure, self.suspicion = failure, None
        self.deadline = time.monotonic() + GRACE_SECONDS
        for member in self.known():
            self.send(member, failure)

    def send(self, member: Member, message: dict[str, object]) -> None:
        """Says a line to a member."""
        try:
            member.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            # It has ended; its connection says so itself.
            return


def listen(port: int) -> socket.socket:
    """Listens on all interfaces. Raises OSError."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=4096)


def main(port: str, num_processes: str, join: str, heartbeat: str, leave: str) -> None:
    """Serves until all members have ended; says on stdout that it is ready. Times in seconds."""
    # They are for the members, which tell this process when they end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A connection for each member.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        listener = listen(int(port))
        with listen(0) as probe:
            service_port = probe.getsockname()[1]
        service = _jax.get_distributed_runtime_service(
            f"[::]:{service_port}",
            int(num_processes),
            heartbeat_timeout=int(heartbeat),
            shutdown_timeout=int(leave),
        )
    except (OSError, RuntimeError, ValueError) as error:
        print(str(error).splitlines()[0], flush=True)
        sys.exit(1)
    print(READY, flush=True)
    Hub(listener, int(num_processes), service_port, float(join)).serve(sys.stdin.fileno())
    # Not by the service's destructor, which waits for members that are gone.
    assert service is not None
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
