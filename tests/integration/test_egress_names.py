"""Names that lead inside, or change where they lead: judged by what a real DNS server says, once for each try."""

import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.names import NameServer
from support.receivers import Receiver, answering, blackhole, serving
from support.sockets import connects

from infra.addresses import Allowed
from infra.local.ports import free_port
from schemas.callback import AttemptReason
from worker.egress import Reply, Resolve, resolve_host, send, tls_context

NOTHING = Allowed()
HERE = Allowed.parse(["127.0.0.1"])
TRAP = "127.0.0.2"
"""Another address of this machine, which no test allows."""

INSIDE = {
    "loopback.test": ["127.0.0.1"],
    "unspecified.test": ["0.0.0.0"],  # noqa: S104 (an answer of DNS)
    "private.test": ["192.168.1.1"],
    "carrier.test": ["100.64.0.1"],
    "metadata.test": ["169.254.169.254"],
    "alibaba.test": ["100.100.100.200"],
    "azure.test": ["168.63.129.16"],
    "multicast.test": ["224.0.0.1"],
    "loopback6.test": ["::1"],
    "unique-local.test": ["fd00:ec2::254"],
    "link-local.test": ["fe80::1"],
    "mapped.test": ["::ffff:169.254.169.254"],
    "compatible.test": ["::10.0.0.1"],
    "nat64.test": ["64:ff9b::a9fe:a9fe"],
    "local-nat64.test": ["64:ff9b:1::808:808"],
    "6to4.test": ["2002:7f00:1::1"],
    "teredo.test": ["2001:0:4136:e378:8000:63bf:5601:5601"],
    "isatap.test": ["2606:4700::5efe:a00:1"],
    "mixed.test": ["8.8.8.8", "10.0.0.1"],
    "mixed-late.test": ["8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "127.0.0.1"],
    "mixed-kinds.test": ["8.8.8.8", "::1"],
}


@pytest.fixture
def trap() -> Iterator[Receiver]:
    """A receiver inside, on the same port as the one that is allowed: nothing may ever come here."""
    with Receiver(answering(200), host=TRAP, port=free_port()) as receiver:  # none that a client on 127.0.0.1 may have
        yield receiver


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of the test's own."""
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA, tmp_path: Path) -> Path:
    """The file of that authority."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    return tmp_path / "authority.pem"


def post(
    url: str, resolve: Resolve, *, allowed: Allowed = NOTHING, deadline_seconds: float = 20.0, **more: Any
) -> Reply:
    """Send a small body."""
    return send(
        url, body=b"{}", headers={}, allowed=allowed, deadline_seconds=deadline_seconds, resolve=resolve, **more
    )


class TestInside:
    @pytest.mark.parametrize("name", INSIDE)
    def test_a_name_that_leads_inside_is_refused(self, name):
        """One address that is not public, among however many, is reason enough to connect to none."""
        with NameServer({name: [INSIDE[name]]}) as server, connects() as attempts:
            reply = post(f"https://{name}/", server.resolve)
        assert (reply.reason, reply.status) == (AttemptReason.REFUSED, None)
        assert attempts == []
        assert server.asked[name, "A"] == 1

    def test_a_name_that_leads_outside_is_connected_to_at_that_very_address(self):
        """The attempt is seen, and stopped, with the addresses that DNS gave, in their order, and no others."""
        with (
            NameServer({"public.test": [["8.8.8.8", "2606:4700::1111"]]}) as server,
            connects(forbidden=True) as attempts,
        ):
            reply = post("https://public.test:8443/", server.resolve)
        assert reply.reason is AttemptReason.CONNECT_FAILED
        assert attempts[0] == ("8.8.8.8", 8443)
        assert [attempt[:2] for attempt in attempts[1:]] == [("2606:4700::1111", 8443)]


class TestRebinding:
    def test_a_name_cannot_change_its_meaning_within_a_try(self, trap, authority, trusting):
        """DNS is asked once, and its second answer, which leads inside, is never heard."""
        with (
            Receiver(answering(200), port=trap.port, tls=serving(authority.issue_cert("rebind.test"))) as receiver,
            NameServer({"rebind.test": [["127.0.0.1"], [TRAP]]}) as server,
            connects() as attempts,
        ):
            reply = post(
                f"https://rebind.test:{receiver.port}/", server.resolve, allowed=HERE, tls=tls_context(trusting)
            )
        assert reply.status == 200
        assert server.asked == {("rebind.test", "A"): 1, ("rebind.test", "AAAA"): 1}
        assert attempts == [("127.0.0.1", receiver.port)]
        assert trap.calls == []

    def test_a_name_is_judged_anew_at_each_try(self, trap, authority, trusting):
        """A name that was good, and delivered to, is refused at the next try, when it leads inside."""
        turns = [["127.0.0.1"], [TRAP], ["127.0.0.1", TRAP], ["127.0.0.1"]]
        with (
            Receiver(answering(200), port=trap.port, tls=serving(authority.issue_cert("rebind.test"))) as receiver,
            NameServer({"rebind.test": turns}) as server,
            connects() as attempts,
        ):
            url = f"https://rebind.test:{receiver.port}/"
            replies = [post(url, server.resolve, allowed=HERE, tls=tls_context(trusting)) for _ in turns]
        assert [reply.status for reply in replies] == [200, None, None, 200]
        assert [reply.reason for reply in replies[1:3]] == [AttemptReason.REFUSED] * 2
        assert server.asked["rebind.test", "A"] == len(turns)
        assert attempts == [("127.0.0.1", receiver.port)] * 2
        assert trap.calls == []


class TestResolving:
    def test_a_name_that_is_none(self):
        """What DNS does not know is told from what it leads to."""
        with NameServer({"empty.test": [[]]}) as server, connects() as attempts:
            assert post("https://nowhere.test/", server.resolve).reason is AttemptReason.DNS_FAILED
            assert post("https://empty.test/", server.resolve).reason is AttemptReason.DNS_FAILED
        assert attempts == []

    def test_a_name_server_that_never_answers(self):
        """The deadline holds for the resolver, too, although nobody can interrupt it."""
        with NameServer({}, mute=True) as server:
            reply = post("https://silent.test/", server.resolve, deadline_seconds=0.5)
        assert (reply.reason, reply.status) == (AttemptReason.DNS_FAILED, None)
        assert reply.seconds < 15

    def test_a_process_that_can_start_no_more_threads(self):
        """Nobody is asked, and that is what the try comes to: it is recorded, and made again."""
        with NameServer({"public.test": [["8.8.8.8"]]}) as server, connects() as attempts:
            usual = threading.stack_size(1 << 46)  # more than there is room for, so that no thread can be started
            try:
                reply = post("https://public.test/", server.resolve)
            finally:
                threading.stack_size(usual)
        assert (reply.reason, reply.status) == (AttemptReason.DNS_FAILED, None)
        assert server.asked == {}
        assert attempts == []

    def test_the_next_address_is_tried_where_one_lets_nobody_in(self):
        """Of several addresses, all of them permitted, a closed one and a silent one do not keep a callback back."""
        listener, fillers = blackhole()
        port = listener.getsockname()[1]
        several = Allowed.parse(["127.0.0.0/8", "hooks.internal"])
        answer = [["127.0.0.3", "127.0.0.1", "127.0.0.4"]]
        with (
            Receiver(answering(200), host="127.0.0.4", port=port),
            NameServer({"hooks.internal": answer}) as server,
            connects() as attempts,
        ):
            reply = post(f"http://hooks.internal:{port}/", server.resolve, allowed=several, deadline_seconds=12)
        for sock in (listener, *fillers):
            sock.close()
        assert (reply.reason, reply.status) == (None, 200)
        assert attempts == [("127.0.0.3", port), ("127.0.0.1", port), ("127.0.0.4", port)]

    def test_a_name_with_many_addresses_is_not_tried_at_all_of_them(self):
        """A try goes to the first four, so that nobody makes us knock at a hundred doors."""
        many = [f"127.0.1.{n}" for n in range(1, 9)]
        with NameServer({"many.test": [many]}) as server, connects(forbidden=True) as attempts:
            reply = post("https://many.test/", server.resolve, allowed=Allowed.parse(["127.0.1.0/24"]))
        assert reply.reason is AttemptReason.CONNECT_FAILED
        assert attempts == [(address, 443) for address in many[:4]]

    def test_a_listed_host_goes_where_its_name_leads(self, trap):
        """What the operator lists by name is trusted with its addresses; http is for such names alone."""
        listed = Allowed.parse(["hooks.internal"])
        with NameServer({"hooks.internal": [[TRAP]], "other.test": [[TRAP]]}) as server:
            assert post(f"http://hooks.internal:{trap.port}/", server.resolve, allowed=listed).status == 200
            assert (
                post(f"http://other.test:{trap.port}/", server.resolve, allowed=listed).reason is AttemptReason.REFUSED
            )
            assert (
                post(f"https://other.test:{trap.port}/", server.resolve, allowed=listed).reason is AttemptReason.REFUSED
            )
        assert len(trap.calls) == 1

    def test_the_systems_resolver(self):
        """The real one gives addresses, best first, and an OSError where there are none."""
        assert ip_address("127.0.0.1") in resolve_host("localhost")
        with pytest.raises(OSError, match=r"\[Errno"):
            resolve_host("256.256.256.256.")

    def test_it_is_the_systems_resolver_that_is_asked(self):
        """Without a resolver of a test's own, localhost is found as everywhere on this machine."""
        with Receiver(answering(200)) as receiver:
            url = f"http://localhost:{receiver.port}/"
            reply = send(url, body=b"", headers={}, allowed=Allowed.parse(["localhost"]), deadline_seconds=20)
        assert reply.status == 200

    def test_ipv6_goes_to_ipv6(self):
        """An address in brackets is connected to, and stands in brackets in the Host header."""
        try:
            receiver = Receiver(answering(200), host="::1")
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
        with receiver:
            url = f"http://[::1]:{receiver.port}/"
            reply = send(url, body=b"", headers={}, allowed=Allowed.parse(["::1"]), deadline_seconds=20)
        assert reply.status == 200
        assert b"\r\nhost: [::1]:%d\r\n" % receiver.port in receiver.calls[0].request


class TestEnvironment:
    def test_nothing_of_it_matters(self, trap, authority, trusting, tmp_path, monkeypatch):
        """Proxies, passwords and key logs that the environment names are none of a callback's business."""
        (tmp_path / "netrc").write_text("default login someone password something\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            for spelt in (name, name.lower()):
                monkeypatch.setenv(spelt, f"http://{TRAP}:{trap.port}")
        with (
            Receiver(answering(200)) as plain,
            Receiver(answering(200), tls=serving(authority.issue_cert("127.0.0.1"))) as secured,
            connects() as attempts,
        ):
            assert post(f"http://127.0.0.1:{plain.port}/", resolve_host, allowed=HERE).status == 200
            # Made here, in this environment.
            tls = tls_context(trusting)
            assert post(f"https://127.0.0.1:{secured.port}/", resolve_host, allowed=HERE, tls=tls).status == 200
        assert attempts == [("127.0.0.1", plain.port), ("127.0.0.1", secured.port)]
        assert trap.calls == []
        assert b"authorization" not in plain.calls[0].request.lower()
        assert not (tmp_path / "keys.log").exists()

    def test_but_for_whom_to_trust(self, authority, trusting, monkeypatch):
        """SSL_CERT_FILE is how an operator names the authorities of a private network, as to every OpenSSL program."""
        monkeypatch.setenv("SSL_CERT_FILE", str(trusting))
        with Receiver(answering(200), tls=serving(authority.issue_cert("127.0.0.1"))) as receiver:
            url = f"https://127.0.0.1:{receiver.port}/"
            assert post(url, resolve_host, allowed=HERE, tls=tls_context()).status == 200
