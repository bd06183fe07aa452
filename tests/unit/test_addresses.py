"""Which URLs a callback may have, and which addresses it may go to: the spellings of those who try to get inside."""

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sockets import connects

from infra.addresses import LONGEST_URL, Allowed, Target, UrlRefusedError, check_url, is_permitted
from infra.environment import as_environment
from infra.settings import load
from schemas.callback import AttemptReason
from schemas.problems import Problem
from worker.egress import send

NOTHING = Allowed()

HOSTILE = [
    # an address inside, spelt as usual
    ("https://127.0.0.1/", "address_not_public"),
    ("https://127.255.255.254/", "address_not_public"),
    ("https://0.0.0.0/", "address_not_public"),
    ("https://10.0.0.1/", "address_not_public"),
    ("https://100.64.0.1/", "address_not_public"),
    ("https://100.100.100.200/latest/meta-data/", "address_not_public"),
    ("https://168.63.129.16/", "address_not_public"),
    ("https://169.254.169.254/latest/meta-data/", "address_not_public"),
    ("https://172.16.0.1/", "address_not_public"),
    ("https://172.31.255.255/", "address_not_public"),
    ("https://192.0.0.192/", "address_not_public"),
    ("https://192.0.2.1/", "address_not_public"),
    ("https://192.88.99.1/", "address_not_public"),
    ("https://192.168.1.1:8443/", "address_not_public"),
    ("https://198.18.0.1/", "address_not_public"),
    ("https://198.51.100.1/", "address_not_public"),
    ("https://203.0.113.1/", "address_not_public"),
    ("https://224.0.0.1/", "address_not_public"),
    ("https://240.0.0.1/", "address_not_public"),
    ("https://255.255.255.255/", "address_not_public"),
    # ... as a number of another kind
    ("https://2130706433/", "host_spelling"),
    ("https://0x7f000001/", "host_spelling"),
    ("https://0X7F000001/", "host_spelling"),
    ("https://017700000001/", "host_spelling"),
    ("https://0x7f.0x0.0x0.0x1/", "host_spelling"),
    ("https://0177.0.0.1/", "host_spelling"),
    ("https://127.0.0.01/", "host_spelling"),
    ("https://127.000.000.001/", "host_spelling"),
    ("https://127.1/", "host_spelling"),
    ("https://127.0.1/", "host_spelling"),
    ("https://0/", "host_spelling"),
    ("https://0x/", "host_spelling"),
    ("https://169.254.43518/", "host_spelling"),
    ("https://0xa9fea9fe/", "host_spelling"),
    ("https://2852039166/", "host_spelling"),
    ("https://425.510.425.510/", "host_spelling"),
    ("https://4294967297/", "host_spelling"),
    ("https://1.2.3.4.5/", "host_spelling"),
    ("https://hooks.example.com.1/", "host_spelling"),
    # ... with dots, letters and digits that are none
    ("https://127.0.0.1./", "host_spelling"),
    ("https://localhost./", "host_spelling"),
    ("https://hooks.example.com./", "host_spelling"),
    ("https://hooks..example.com/", "host_spelling"),
    ("https://.example.com/", "host_spelling"),
    ("https://127\u30020\u30020\u30021/", "url_characters"),
    ("https://\uff11\uff12\uff17.0.0.1/", "url_characters"),
    ("https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/", "url_characters"),
    ("https://\u0661\u0662\u0667.0.0.1/", "url_characters"),
    ("https://b\u00fccher.example/", "url_characters"),
    ("https://loc\u00adalhost/", "url_characters"),
    ("https://local\u200bhost/", "url_characters"),
    ("https://\u2113ocalhost/", "url_characters"),
    ("https://examp\u2100.com/", "url_characters"),
    ("https://%31%32%37.0.0.1/", "host_spelling"),
    ("https://127.0.0.1%00.example.com/", "host_spelling"),
    ("https://127.0.0.1%2eexample.com/", "host_spelling"),
    ("https://my_host.example.com/", "host_spelling"),
    ("https://-host.example.com/", "host_spelling"),
    (f"https://{'a' * 64}.example.com/", "host_spelling"),
    (f"https://{'a.' * 126}com/", "host_spelling"),
    # IPv6, plain and with an IPv4 address inside
    ("https://[::1]/", "address_not_public"),
    ("https://[0:0:0:0:0:0:0:1]/", "address_not_public"),
    ("https://[::]/", "address_not_public"),
    ("https://[::ffff:127.0.0.1]/", "host_spelling"),
    ("https://[::ffff:7f00:1]/", "host_spelling"),
    ("https://[0:0:0:0:0:FFFF:A9FE:A9FE]/", "host_spelling"),
    ("https://[::ffff:8.8.8.8]/", "host_spelling"),
    ("https://[::127.0.0.1]/", "address_not_public"),
    ("https://[::ffff:0:127.0.0.1]/", "address_not_public"),
    ("https://[64:ff9b::169.254.169.254]/", "address_not_public"),
    ("https://[64:ff9b::a00:1]/", "address_not_public"),
    ("https://[64:ff9b:1::a9fe:a9fe]/", "address_not_public"),
    ("https://[64:ff9b:1::808:808]/", "address_not_public"),
    ("https://[2002:7f00:1::]/", "address_not_public"),
    ("https://[2002:a9fe:a9fe::1]/", "address_not_public"),
    ("https://[2001:0:4136:e378:8000:63bf:5601:5601]/", "address_not_public"),
    ("https://[2606:4700::5efe:10.0.0.1]/", "address_not_public"),
    ("https://[2606:4700::200:5efe:169.254.169.254]/", "address_not_public"),
    ("https://[fe80::1]/", "address_not_public"),
    ("https://[fe80::a9fe:a9fe]/", "address_not_public"),
    ("https://[fec0::1]/", "address_not_public"),
    ("https://[fc00::1]/", "address_not_public"),
    ("https://[fd00:ec2::254]/", "address_not_public"),
    ("https://[fd20:ce::254]/", "address_not_public"),
    ("https://[ff02::1]/", "address_not_public"),
    ("https://[100::1]/", "address_not_public"),
    ("https://[5f00::1]/", "address_not_public"),
    ("https://[2001:db8::1]/", "address_not_public"),
    ("https://[3fff::1]/", "address_not_public"),
    ("https://[2001:2::1]/", "address_not_public"),
    ("https://[2001:20::1]/", "address_not_public"),
    ("https://[4000::1]/", "address_not_public"),
    ("https://[fe80::1%25eth0]/", "host_spelling"),
    ("https://[fe80::1%eth0]/", "host_spelling"),
    ("https://[2606:4700::1%251]/", "host_spelling"),
    ("https://[v1.127]/", "host_spelling"),
    ("https://[127.0.0.1]/", "host_spelling"),
    ("https://[]/", "host_spelling"),
    ("https://[::1/", "url_syntax"),
    ("https://::1/", "url_syntax"),
    ("https://[::1]example.com/", "url_syntax"),
    # names that lead inside by what they are
    ("https://localhost/", "host_not_public"),
    ("https://LOCALHOST/", "host_not_public"),
    ("https://localhost.localdomain/", "host_not_public"),
    ("https://any.localhost/", "host_not_public"),
    ("https://printer.local/", "host_not_public"),
    ("https://metadata/", "host_not_public"),
    ("https://metadata.google.internal/computeMetadata/v1/", "host_not_public"),
    ("https://metadata.goog/", "host_not_public"),
    ("https://instance-data.ec2.internal/", "host_not_public"),
    ("https://kubernetes.default.svc.cluster.local/", "host_not_public"),
    ("https://redis/", "host_not_public"),
    ("https://router.home.arpa/", "host_not_public"),
    # who is the host: user names, backslashes, what ends where
    ("https://example.com@127.0.0.1/", "url_userinfo"),
    ("https://127.0.0.1@example.com/", "url_userinfo"),
    ("https://user:password@example.com/", "url_userinfo"),
    ("https://@example.com/", "url_userinfo"),
    ("https://example.com:443@127.0.0.1/", "url_userinfo"),
    ("https://example.com%40127.0.0.1/", "host_spelling"),
    ("https://127.0.0.1\\@example.com/", "url_syntax"),
    ("https://example.com\\@127.0.0.1/", "url_syntax"),
    ("https://example.com\\.127.0.0.1/", "host_spelling"),
    ("https:\\\\127.0.0.1\\", "url_syntax"),
    ("https:/\\127.0.0.1/", "url_syntax"),
    ("https://example.com#@127.0.0.1/", "url_fragment"),
    ("https://example.com/#fragment", "url_fragment"),
    ("https://example.com;.127.0.0.1/", "host_spelling"),
    ("https://example.com,127.0.0.1/", "host_spelling"),
    ("https://*.example.com/", "host_spelling"),
    ("https:///127.0.0.1/", "host_spelling"),
    ("https:127.0.0.1/", "url_syntax"),
    ("//127.0.0.1/", "url_syntax"),
    ("127.0.0.1", "url_syntax"),
    ("", "url_syntax"),
    # spaces, control characters, what breaks a request in two
    (" https://example.com/", "url_characters"),
    ("https://example.com/ ", "url_characters"),
    ("https://exam\tple.com/", "url_characters"),
    ("https://example.com/a\r\nX-Injected: yes", "url_characters"),
    ("https://example.com/a\nHost: 127.0.0.1", "url_characters"),
    ("https://example.com\x00.127.0.0.1/", "url_characters"),
    ("https://127.0.0.1\u2028/", "url_characters"),
    ("\ufeffhttps://example.com/", "url_characters"),
    ("https://example.com/\ud800", "url_characters"),
    ("https://example.com/a|b", "url_syntax"),
    ("https://example.com/%zz", "url_syntax"),
    ("https://example.com/<a>", "url_syntax"),
    (f"https://example.com/{'a' * LONGEST_URL}", "url_too_long"),
    # ports
    ("https://example.com:0/", "url_port"),
    ("https://example.com:/", "url_port"),
    ("https://example.com:65536/", "url_port"),
    ("https://example.com:99999999999/", "url_port"),
    ("https://example.com:-1/", "url_port"),
    ("https://example.com:+443/", "url_port"),
    ("https://example.com:0443/", "url_port"),
    ("https://example.com:0x1bb/", "url_port"),
    ("https://example.com:4_43/", "url_port"),
    ("https://example.com:443:22/", "url_syntax"),
    # schemes
    ("http://example.com/", "url_not_https"),
    ("http://8.8.8.8/", "url_not_https"),
    ("ftp://example.com/", "url_scheme"),
    ("file:///etc/passwd", "url_scheme"),
    ("gopher://127.0.0.1:6379/_FLUSHALL", "url_scheme"),
    ("ws://example.com/", "url_scheme"),
    ("unix://run/docker.sock", "url_scheme"),
    ("httpss://example.com/", "url_scheme"),
    ("data:text/html,hello", "url_syntax"),
    ("javascript:alert(1)", "url_syntax"),
    ("https+unix://example.com/", "url_scheme"),
]

PUBLIC = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.255"]
PUBLIC += ["2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "64:ff9b::808:808", "2606::5efe:808:808"]


def refusal(url: str, allowed: Allowed = NOTHING) -> UrlRefusedError:
    """Check a URL that must be refused."""
    with pytest.raises(UrlRefusedError) as refused:
        check_url(url, allowed)
    return refused.value


def never(host: str) -> list[IPv4Address | IPv6Address]:
    """A resolver that must not be asked."""
    raise AssertionError(f"{host} was resolved")


class TestHostile:
    @pytest.mark.parametrize(("url", "code"), HOSTILE, ids=[ascii(url)[:60] for url, _ in HOSTILE])
    def test_a_hostile_spelling_is_refused_before_anything_is_asked_or_opened(self, url, code):
        """The refusal has its code and says what to do, and a send ends without a resolver or a connection."""
        refused = refusal(url)
        assert refused.code == code
        assert str(refused) == refused.message
        assert refused.message.endswith(".")
        with connects() as attempts:
            reply = send(url, body=b"{}", headers={}, allowed=NOTHING, deadline_seconds=5, resolve=never)
        assert (reply.reason, reply.status) == (AttemptReason.REFUSED, None)
        assert attempts == []

    def test_there_are_many_of_them(self):
        """No spelling stands in the table twice, and there are more than sixty."""
        assert len({url for url, _ in HOSTILE}) == len(HOSTILE) > 60

    def test_the_attempts_would_have_been_seen(self):
        """The same send to a good address is seen as an attempt to connect there, and stopped."""
        with connects(forbidden=True) as attempts:
            reply = send("https://8.8.8.8/", body=b"", headers={}, allowed=NOTHING, deadline_seconds=5, resolve=never)
        assert attempts == [("8.8.8.8", 443)]
        assert reply.reason is AttemptReason.CONNECT_FAILED


class TestGood:
    @pytest.mark.parametrize(
        ("url", "target"),
        [
            ("https://hooks.example.com", Target("https", "hooks.example.com", 443, "/", None)),
            ("HTTPS://Hooks.Example.COM:8443/A?b=1", Target("https", "hooks.example.com", 8443, "/A?b=1", None)),
            ("https://example.com?a=@b", Target("https", "example.com", 443, "/?a=@b", None)),
            ("https://xn--bcher-kva.example/%C3%BC", Target("https", "xn--bcher-kva.example", 443, "/%C3%BC", None)),
            ("https://example.com/@user;v=1/~a", Target("https", "example.com", 443, "/@user;v=1/~a", None)),
            ("https://1.example.com:443/", Target("https", "1.example.com", 443, "/", None)),
            ("https://0x7f.example/", Target("https", "0x7f.example", 443, "/", None)),
            ("https://8.8.8.8:65535/", Target("https", "8.8.8.8", 65535, "/", IPv4Address("8.8.8.8"))),
            ("https://[2606:4700:0::AB]/", Target("https", "2606:4700::ab", 443, "/", IPv6Address("2606:4700::ab"))),
        ],
    )
    def test_a_public_url_is_taken_apart(self, url, target):
        """Scheme and host come in small letters, an address in its usual spelling, path and query untouched."""
        assert check_url(url, NOTHING) == target

    @pytest.mark.parametrize(
        ("url", "authority"),
        [
            ("https://example.com:443/", "example.com"),
            ("https://example.com:8443/", "example.com:8443"),
            ("https://[2606:4700::1]/", "[2606:4700::1]"),
            ("https://[2606:4700::1]:444/", "[2606:4700::1]:444"),
        ],
    )
    def test_the_authority_is_what_the_host_header_says(self, url, authority):
        """IPv6 stands in brackets, and the scheme's own port is left out."""
        assert check_url(url, NOTHING).authority == authority

    @pytest.mark.parametrize("address", PUBLIC)
    def test_a_public_address_is_permitted(self, address):
        """What lies just outside of the special networks is the public internet."""
        assert is_permitted(ip_address(address), NOTHING)


class TestDisguises:
    @given(inner=st.ip_addresses(v=4))
    def test_an_inner_address_decides_as_if_it_stood_alone(self, inner):
        """Mapped, NAT64 and ISATAP addresses are permitted if and only if the address inside is."""
        number = int(inner)
        for outer in (0xFFFF << 32, 0x0064FF9B << 96, (0x26064700 << 96) + (0x5EFE << 32)):
            assert is_permitted(IPv6Address(outer + number), NOTHING) == is_permitted(inner, NOTHING)

    @given(inner=st.ip_addresses(v=4), rest=st.integers(0, 2**80 - 1))
    def test_the_old_ways_through_ipv4_are_closed(self, inner, rest):
        """Compatible, 6to4, Teredo and local NAT64 addresses are refused, whatever they carry."""
        six_to_four = (0x2002 << 112) + (int(inner) << 80) + rest
        teredo = (0x20010000 << 96) + (int(inner) << 64) + (rest & (2**64 - 1))
        local_nat64 = (0x0064FF9B0001 << 80) + rest
        for number in (int(inner), six_to_four, teredo, local_nat64):
            assert not is_permitted(IPv6Address(number), NOTHING)

    def test_a_zone_changes_nothing(self):
        """A link-local address is refused with and without the interface that it is reached by."""
        assert not is_permitted(ip_address("fe80::1%eth0"), NOTHING)


class TestAllowed:
    INSIDE = Allowed.parse(["10.0.0.0/8", "127.0.0.1", "fd00::/8", "Receiver.internal", "hooks"])

    @pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "fd00::1", "::ffff:10.1.2.3"])
    def test_an_address_of_a_listed_network_is_permitted(self, address):
        """A network, or a single address, is listed as it is written; mapping changes nothing."""
        assert is_permitted(ip_address(address), self.INSIDE)

    @pytest.mark.parametrize("address", ["192.168.0.1", "127.0.0.2", "fe80::1", "169.254.169.254", "64:ff9b::a01:203"])
    def test_nothing_else_is(self, address):
        """What is not listed stays closed, also where a translator would carry it to a listed network's number."""
        assert not is_permitted(ip_address(address), self.INSIDE)

    @pytest.mark.parametrize(
        "url",
        [
            "https://10.0.0.1/",
            "http://10.0.0.1:8080/",
            "http://[fd00::1]/",
            "http://receiver.internal/",
            "https://hooks/",
        ],
    )
    def test_listed_hosts_and_addresses_are_taken_with_and_without_tls(self, url):
        """What the operator lists is reached by https and http."""
        assert check_url(url, self.INSIDE)

    @pytest.mark.parametrize(
        ("url", "code"),
        [
            ("http://example.com/", "url_not_https"),
            ("http://8.8.8.8/", "url_not_https"),
            ("https://127.0.0.2/", "address_not_public"),
            ("https://other.internal/", "host_not_public"),
            ("https://receiver.internal.local/", "host_not_public"),
            ("https://10.1/", "host_spelling"),
            ("https://[::ffff:10.0.0.1]/", "host_spelling"),
        ],
    )
    def test_a_list_opens_nothing_beside_it(self, url, code):
        """Neighbours of what is listed, odd spellings of it, and http to the public are refused as ever."""
        assert refusal(url, self.INSIDE).code == code

    @pytest.mark.parametrize(
        "entry",
        ["10.0.0.1/8", "10", "127.1", "10.0.0.0/33", "a_b", "https://a.b", "a.b:80", "*.internal", "", "a b"],
    )
    def test_an_entry_that_is_none_is_quoted(self, entry):
        """The error repeats the entry and shows how one is written."""
        with pytest.raises(ValueError, match=re.escape(repr(entry)) + r".*receiver\.internal"):
            Allowed.parse(["10.0.0.0/8", entry])


class TestSetting:
    def test_the_setting_is_a_list_with_commas(self, monkeypatch):
        """It is read from one variable, and handed on to a child process as it was."""
        monkeypatch.setenv("NIGHTCOURT_CALLBACK_ALLOW", " receiver.internal, 10.0.0.0/8,")
        read = load()
        assert read.callback_allow == ("receiver.internal", "10.0.0.0/8")
        assert as_environment(read)["NIGHTCOURT_CALLBACK_ALLOW"] == "receiver.internal,10.0.0.0/8"

    def test_nothing_is_listed_by_default(self, monkeypatch):
        """Out of the box a callback goes to the public internet alone."""
        monkeypatch.delenv("NIGHTCOURT_CALLBACK_ALLOW", raising=False)
        assert Allowed.parse(load().callback_allow) == Allowed()

    def test_a_wrong_entry_is_refused_at_the_start(self):
        """The sentence names the variable and the entry."""
        with pytest.raises(Problem) as problem:
            load(callback_allow="10.0.0.1/8")
        assert problem.value.detail.startswith("NIGHTCOURT_CALLBACK_ALLOW: '10.0.0.1/8' is no host name")


PIECES = [
    "https://",
    "http://",
    "//",
    "\\",
    "@",
    ":",
    "#",
    "?",
    "/",
    ".",
    "[",
    "]",
    "%",
    "%2e",
    "127.0.0.1",
    "0x7f",
    "1",
    "017",
]
PIECES += [
    "::1",
    "::ffff:",
    "example.com",
    "xn--",
    "localhost",
    "a",
    "-",
    "_",
    "443",
    "\t",
    " ",
    "\u3002",
    "\uff11",
    "\x00",
]
URLS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(PIECES)).map("".join),
    st.lists(st.sampled_from(PIECES)).map(lambda pieces: "https://" + "".join(pieces)),
    st.from_regex(r"https://[a-z0-9x.-]{1,20}(:[0-9]{1,5})?(/[!-~]{0,9})?", fullmatch=True),
)


class TestAnything:
    @settings(max_examples=1000)
    @given(url=URLS)
    def test_any_text_is_refused_or_read_in_one_way(self, url):
        """Nothing but a refusal is raised, and what passes means the same to us and to two other parsers."""
        try:
            target = check_url(url, NOTHING)
        except UrlRefusedError:
            return
        assert check_url(f"{target.scheme}://{target.authority}{target.path}", NOTHING) == target
        split = urlsplit(url)
        assert split.username is None
        assert split.port in {None, target.port}
        if target.address is None:
            # The raw host, as it is sent: the other is one for people to read.
            assert split.hostname == httpx2.URL(url).raw_host.decode() == target.host
            with pytest.raises(OSError, match="illegal IP address"):
                socket.inet_aton(target.host)
        else:
            assert ip_address(split.hostname or "") == target.address
            assert is_permitted(target.address, NOTHING)

    @given(address=st.ip_addresses())
    def test_what_is_permitted_is_global_to_python_too(self, address):
        """Our rules only ever take away from what the standard library calls global."""
        if is_permitted(address, NOTHING) and not getattr(address, "ipv4_mapped", None):
            assert address.is_global
            assert not address.is_multicast

    @given(entries=st.lists(st.text(max_size=20)))
    def test_any_list_is_read_or_refused(self, entries):
        """Nothing but ValueError is raised for entries that are none."""
        try:
            Allowed.parse(entries)
        except ValueError as error:
            assert "no host name" in str(error)  # noqa: PT017 (most lists are refused)
