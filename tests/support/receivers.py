"""Receivers of callbacks, good and bad: real sockets and threads on loopback, each behaving by a function."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

CHUNK = b"a" * 65536
LONG_SECONDS = 60.0
"""How long a bad receiver keeps at it, unless it is cut off or the test is over."""

Behaviour = Callable[["Call"], None]


class Call:
    """One connection, from the receiver's side.

    Attributes:
        request: What was read.
        sent: How many bytes the kernel took of what the receiver says.
    """

    def __init__(self, connection: socket.socket, over: threading.Event) -> None:
        self.connection = connection
        self.request = b""
        self.sent = 0
        self._over = over

    def read(self) -> None:
        """Read the request, whole."""
        while b"\r\n\r\n" not in self.request:
            self._receive()
        head, _, _ = self.request.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        while len(self.request) < len(head) + 4 + int(lengths[0]):
            self._receive()

    def _receive(self) -> None:
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError("the sender hung up in the middle of its request")
        self.request += data

    def say(self, data: bytes) -> None:
        """Send all of this."""
        view = memoryview(data)
        while view:
            count = self.connection.send(view)
            self.sent += count
            view = view[count:]

    def dribble(self, data: bytes) -> None:
        """Send a byte a second, over and over, for a long time."""
        for place in range(int(LONG_SECONDS)):
            self.say(data[place % len(data) :][:1])
            if self._over.wait(1.0):
                return

    def pour(self, data: bytes, most: int) -> None:
        """Send the same again and again until `most` bytes were taken, or the sender hangs up."""
        while self.sent < most and not self._over.is_set():
            self.say(data)

    def wait_for_hangup(self) -> None:
        """Read until there is nobody any more."""
        self.connection.settimeout(LONG_SECONDS)
        with suppress(ConnectionError):
            while self.connection.recv(65536):
                pass

    def reset(self) -> None:
        """End the connection without a goodbye."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Receiver:
    """Listens on an address of this machine, and behaves.

    Attributes:
        port: Where.
        calls: All connections so far.
        server_names: What each TLS client called it.
    """

    def __init__(
        self, behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.calls: list[Call] = []
        self.server_names: list[str | None] = []
        self._behaviour = behaviour
        self._tls = tls
        if tls is not None:
            tls.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._over.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(LONG_SECONDS)
        call = Call(connection, self._over)
        self.calls.append(call)
        # What the sender does to a bad receiver is no failure of the test.
        with suppress(OSError), connection:
            if self._tls is None:
                self._behaviour(call)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secured:
                call.connection = secured
                self._behaviour(call)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        # shutdown wakes the thread that accepts; close alone does not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """A server's terms of TLS, with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def self_signed(name: str, file: Path) -> ssl.SSLContext:
    """A server's terms of TLS, with a certificate that nobody but itself vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def answering(status: int, headers: str = "", body: bytes = b"") -> Behaviour:
    """Read the whole request and answer it as one should."""

    def behave(call: Call) -> None:
        call.read()
        call.say(f"HTTP/1.1 {status} So\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)

    return behave


def saying(data: bytes) -> Behaviour:
    """Read the whole request and answer with these very bytes."""

    def behave(call: Call) -> None:
        call.read()
        call.say(data)

    return behave


def blackhole() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue is full: it takes no connection and refuses none. Close all that is returned."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(16):
        filler = socket.socket()
        filler.settimeout(0.2)
        fillers.append(filler)
        try:
            filler.connect(listener.getsockname())
        except TimeoutError:
            return listener, fillers
    raise AssertionError("the queue of a listener never filled up")
