"""Where webhooks may go: to public addresses, and to no machine of the operator's network.

A name is resolved once, all of its addresses are checked, and the connection goes to one of those. So a later change of
its DNS records has no effect.
"""

from __future__ import annotations

import ipaddress
import re
import socket

import httpx

from headrace.errors import invalid_parameter
from headrace.runtime.lookups import Lookups, TooManyLookupsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# The public addresses of IPv6. The others belong to one machine, one network or one protocol.
_UNICAST = ipaddress.ip_network("2000::/3")
# The last 64 bits of ISATAP's addresses begin so, and end with an IPv4 address: RFC 5214, section 6.1.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
# Public by its number, but every virtual machine in Azure reaches a service of Azure's platform at it.
_WIRE_SERVER = ipaddress.ip_address("168.63.129.16")
# Networks that IANA reserves: https://www.iana.org/assignments/iana-ipv4-special-registry. Python takes them for
# global: some can be reached from everywhere, and others it does not know yet.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # protocol assignments, where one cloud has its metadata
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.175.48.0/24",
            "2620:4f:8000::/48",
            "3fff::/20",  # documentation
        ),
    )
)


# Characters of a host's name, and each part of it: RFC 1035, section 2.3.4. Some names have an underscore.
_LONGEST_HOST = 253
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_LAST_PORT = 65_535

_lookups = Lookups()


class ForbiddenAddressError(Exception):
    """The host is not one that webhooks may go to, or is not found."""


def check_url(url: str, *, allow_private: bool, param: str = "webhook") -> None:
    """Refuse an address that webhooks may not go to, where it is written in the URL itself, which `param` has.

    Raises:
        InvalidRequestError: It is one, or the URL is not one to call.
    """
    try:
        parsed = httpx.URL(url)
        host, port = ascii_host(parsed).removesuffix("."), parsed.port
    except (httpx.InvalidURL, ValueError):
        host, port = "", None
    address = _address(host)
    is_name = len(host) <= _LONGEST_HOST and all(map(_LABEL.fullmatch, host.split(".")))
    if (address is None and not is_name) or (port is not None and not 0 < port <= _LAST_PORT):
        raise invalid_parameter(param, "it is not a valid URL")
    forbidden = host == "localhost" or host.endswith(".localhost") if address is None else not is_public(address)
    if forbidden and not allow_private:
        raise invalid_parameter(param, f"webhooks may not go to '{host}'")


def ascii_host(url: httpx.URL) -> str:
    """Return a URL's host as it is looked up: in ASCII, by IDNA 2008.

    Python's resolver would encode other characters by IDNA 2003, by which some names are those of other domains.
    """
    return url.raw_host.decode("ascii").strip("[]")


def _address(host: str) -> Address | None:
    """Return the address that a host is, also in the forms that only resolvers know, such as `127.1`."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if _LABEL.match(host) else None
    except OSError:
        return None


def is_public(address: Address) -> bool:
    """Return whether an address is one of the internet, also by the IPv4 address that it may stand for."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    if address == _WIRE_SERVER or any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that one of the ways from IPv6 to IPv4 leads to."""
    if address in _NAT64 or int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


async def resolve(host: str, *, allow_private: bool) -> str:
    """Return an address of a host to connect to.

    Raises:
        ForbiddenAddressError: It has none, or one that webhooks may not go to, or too many others are looked up.
    """
    try:
        found = await _lookups.find(host)
    except TooManyLookupsError as error:
        raise ForbiddenAddressError(str(error)) from None
    except (OSError, UnicodeError):
        raise ForbiddenAddressError("The host is not known.") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses:
        raise ForbiddenAddressError("The host has no address.")
    if not allow_private and not all(map(is_public, addresses)):
        raise ForbiddenAddressError("The host has an address that webhooks may not go to.")
    return str(addresses[0])
