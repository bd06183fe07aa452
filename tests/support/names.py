"""A small DNS server on loopback, and a resolver that asks it, by real DNS over UDP."""

import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSRecord

from infra.addresses import Address


class NameServer:
    """Answers each name by a script: one list of addresses for each time it is asked, the last one forever.

    Attributes:
        asked: How often each name was asked for, by `(name, "A")` and `(name, "AAAA")`.
    """

    def __init__(self, script: Mapping[str, Sequence[Sequence[str]]], *, mute: bool = False) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self._script = script
        self._mute = mute
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def resolve(self, host: str) -> list[Address]:
        """Ask for a name's addresses of both kinds, as a resolver does; OSError where there are none."""
        found: list[Address] = []
        for kind in ("A", "AAAA"):
            question = DNSRecord.question(host, kind)
            answer = DNSRecord.parse(question.send(*self._socket.getsockname(), timeout=20))
            assert answer.header.id == question.header.id
            if answer.header.rcode != RCODE.NOERROR:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            found += [ip_address(str(record.rdata)) for record in answer.rr]
        return found

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                packet, sender = self._socket.recvfrom(512)
            except TimeoutError:
                continue
            if not self._mute:
                self._socket.sendto(self._answer(DNSRecord.parse(packet)).pack(), sender)

    def _answer(self, question: DNSRecord) -> DNSRecord:
        name, kind = str(question.q.qname).rstrip("."), QTYPE[question.q.qtype]
        turns = self._script.get(name)
        reply = question.reply()
        if turns is None:
            reply.header.rcode = RCODE.NXDOMAIN
            return reply
        turn = turns[min(self.asked[name, kind], len(turns) - 1)]
        self.asked[name, kind] += 1
        for address in turn:
            if (kind == "AAAA") == (":" in address):
                data = AAAA(tuple(ip_address(address).packed)) if kind == "AAAA" else A(address)
                reply.add_answer(RR(question.q.qname, question.q.qtype, ttl=0, rdata=data))
        return reply

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()
