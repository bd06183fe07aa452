"""Where a callback may go: which URLs are taken at all, and which addresses may be connected to.

Pure: nothing here asks a resolver or opens a socket. A producer's URL is checked when it is registered and again at
each try; the addresses that its name stands for are judged at each try, by whoever resolved it (`worker/egress.py`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import Self

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_URL = 2048
"""Characters. Longer ones are refused."""

_DEFAULT_PORTS = {"https": 443, "http": 80}
_LAST_PORT = 65535
_LONGEST_HOST = 253

# RFC 3986 to the letter. What is outside of it, parsers read in different ways, and a guard must not read a URL in
# another way than whoever connects.
_URL = re.compile(
    r"""(?P<scheme>[a-z][a-z0-9+.-]*)://
        (?P<host>\[[^\[\]@/?\#]*\]|[^\[\]:@/?\#]*)
        (?P<port>:[^\[\]:@/?\#]*)?
        (?P<path>/(?:[a-z0-9._~!$&'()*+,;=:@/-]|%[0-9a-f]{2})*)?
        (?P<query>\?(?:[a-z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-f]{2})*)?""",
    re.IGNORECASE | re.ASCII | re.VERBOSE,
)
_PRINTABLE = re.compile(r"[!-~]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# What the C library, and with it nearly every resolver, takes for a number, whatever stands before it.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Names that lead inside by what they are. Others may as well: it is their addresses that are judged.
_INSIDE = ("localhost", "localdomain", "local", "internal", "lan", "home.arpa", "onion", "alt", "metadata.goog")

# Not for the public, whatever the running Python's `is_global` says: IANA's special-purpose registries, with all that
# was meant for a transition from IPv4 and can carry an inner address.
_NOT_PUBLIC_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a carrier's NAT; cloud metadata (100.100.100.200)
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's own services, on an address that is global by its number
        "169.254.0.0/16",  # link-local; cloud metadata (169.254.169.254 and others)
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; cloud metadata (192.0.0.192)
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
)
_PUBLIC_IPV6 = IPv6Network("2000::/3")
"""All that IANA gives out for global use. Outside are loopback, `::a.b.c.d`, local NAT64 (64:ff9b:1::/48), unique
local, link-local, site-local, multicast, discard, segment routing and what nobody has thought of yet."""
_NOT_PUBLIC_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = 0x00005EFE
_ISATAP_BITS = 0xFDFFFFFF  # but for the bit that says whether the inner address is unique


class UrlRefusedError(ValueError):
    """A URL that no callback is sent to.

    Attributes:
        code: Which rule it breaks; never changes.
        message: What to do about it. Holds nothing of the URL.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Allowed:
    """What is permitted beyond the public internet.

    Attributes:
        hosts: Names in small letters, trusted with whatever addresses they stand for.
        networks: Addresses permitted under any name.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Self:
        """Read entries such as `receiver.internal`, `10.1.2.3`, `10.0.0.0/8` and `fd00::/8`.

        Raises:
            ValueError: An entry is none of these; the message quotes it.
        """
        hosts: set[str] = set()
        networks: list[Network] = []
        for entry in entries:
            name = entry.lower()
            if _is_name(name):
                hosts.add(name)
                continue
            try:
                networks.append(ip_network(entry))
            except ValueError as error:
                raise ValueError(
                    f"{entry!r} is no host name, address or network ({error}): "
                    "write it like receiver.internal, 10.1.2.3 or 10.0.0.0/8"
                ) from None
        return cls(frozenset(hosts), tuple(networks))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart.

    Attributes:
        scheme: `https` or `http`.
        host: The name in small letters, or the address in its usual spelling, without brackets.
        port: 1 to 65535.
        path: Path and query as they go on the wire; begins with `/`.
        address: The address where the host is one, else None.
    """

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port: what the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def check_url(url: str, allowed: Allowed) -> Target:
    """Take a callback's URL apart, by its spelling alone.

    Plain http is for what is allowed explicitly: a listed host, or an address inside a listed network, since inside a
    private network there is often no certificate to be had. A name that merely leads into a listed network needs https.

    Args:
        url: As a producer gave it.
        allowed: What is permitted beyond the public internet.

    Raises:
        UrlRefusedError: Nothing is sent there.
    """
    if len(url) > LONGEST_URL:
        raise UrlRefusedError("url_too_long", f"The URL is longer than {LONGEST_URL} characters: give a shorter one.")
    if not _PRINTABLE.fullmatch(url):
        raise UrlRefusedError(
            "url_characters",
            "The URL holds a space, a control character or a character outside ASCII: percent-encode it, "
            "and write an international host name in its xn-- form.",
        )
    parts = _URL.fullmatch(url)
    if parts is None:
        raise _why_no_url(url)
    scheme = parts["scheme"].lower()
    if scheme not in _DEFAULT_PORTS:
        raise UrlRefusedError("url_scheme", "The URL is of another scheme than https: give one that begins https://.")
    host, address = _host(parts["host"].lower(), allowed)
    if scheme == "http" and host not in allowed.hosts and not (address and _in_networks(address, allowed)):
        raise UrlRefusedError(
            "url_not_https",
            "Plain http is taken only for hosts and addresses that this service's operator lists: use https.",
        )
    path = parts["path"] or "/"
    return Target(scheme, host, _port(parts["port"], scheme), path + (parts["query"] or ""), address)


def is_permitted(address: Address, allowed: Allowed) -> bool:
    """Whether a connection to this address may be opened: it is public, or lies in a network that is allowed.

    An IPv6 address that stands for an IPv4 address is judged as that one: mapped (`::ffff:a.b.c.d`) by all rules,
    NAT64's own prefix and ISATAP by whether it is public. Compatible, 6to4, Teredo and local NAT64 addresses are never
    public. What a network's own NAT64 prefix carries cannot be told from the address.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return _in_networks(address, allowed) or is_public(address)


def _in_networks(address: Address, allowed: Allowed) -> bool:
    return any(address in network for network in allowed.networks)


def is_public(address: Address) -> bool:
    """Whether an address is one that the public internet leads to; mapped ones are none."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_IPV4)
    inner = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64:
        return is_public(inner)
    if (int(address) >> 32) & _ISATAP_BITS == _ISATAP and not is_public(inner):
        return False
    return address.is_global and address in _PUBLIC_IPV6 and not any(address in network for network in _NOT_PUBLIC_IPV6)


def _why_no_url(url: str) -> UrlRefusedError:
    """The likeliest reason why it is none."""
    _, _, rest = url.partition("//")
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in authority:
        return UrlRefusedError(
            "url_userinfo", "The URL holds a user name or password before the host: take it out; callbacks are signed."
        )
    if "#" in url:
        return UrlRefusedError(
            "url_fragment", "The URL holds a fragment, which is never sent: take out # and the rest."
        )
    return UrlRefusedError(
        "url_syntax",
        "This is no URL in the strict sense of RFC 3986: write https://host/path and percent-encode everything "
        "but letters, digits and -._~!$&'()*+,;=:@/ in path and query.",
    )


def _port(text: str | None, scheme: str) -> int:
    if text is None:
        return _DEFAULT_PORTS[scheme]
    digits = text.removeprefix(":")
    if not _PORT.fullmatch(digits) or int(digits) > _LAST_PORT:
        raise UrlRefusedError(
            "url_port",
            f"The port is not a plain number from 1 to {_LAST_PORT}: correct it or leave it and its colon out.",
        )
    return int(digits)


def _host(host: str, allowed: Allowed) -> tuple[str, Address | None]:
    """The host in its one spelling, and the address where it is one."""
    literal = _literal(host)
    if literal is not None:
        if not is_permitted(literal, allowed):
            raise UrlRefusedError(
                "address_not_public",
                "The address in the URL is not one of the public internet: use a public one, or have this service's "
                "operator list it.",
            )
        return str(literal), literal
    if not _is_name(host):
        raise UrlRefusedError(
            "host_spelling",
            "The host is neither a name of letters, digits, hyphens and dots nor an address in its usual spelling, "
            "such as 192.0.2.1 or [2001:db8::1]: write it so, without a dot at its end.",
        )
    if host not in allowed.hosts and ("." not in host or any(f".{host}".endswith(f".{name}") for name in _INSIDE)):
        raise UrlRefusedError(
            "host_not_public",
            "The host's name is one that is used inside networks alone: use a public name, or have this service's "
            "operator list it.",
        )
    return host, None


def _literal(host: str) -> Address | None:
    """The address that the host is; None for a name, and for a spelling that programs disagree about."""
    try:
        if not host.startswith("["):
            return IPv4Address(host)
        address = IPv6Address(host[1:-1])
    except AddressValueError:
        return None
    # A zone says through which of this machine's interfaces; an IPv4 address has a spelling of its own.
    return None if address.scope_id or address.ipv4_mapped else address


def _is_name(host: str) -> bool:
    """Whether it is a host name in small letters that nothing takes for a number."""
    labels = host.split(".")
    return (
        len(host) <= _LONGEST_HOST
        and all(_LABEL.fullmatch(label) for label in labels)
        and not _NUMBER.fullmatch(labels[-1])
    )
