"""Images fetched from addresses that strangers name, without lending them this server's place in its network.

A name is resolved once, every address it has must be one of the public internet, and the connection goes to an address
that was checked: what the name resolves to afterwards does not matter. Each redirect begins anew.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from ladderlm.errors import LadderError, UsageError
from ladderlm.talk.images import LARGEST, TYPES, checked
from ladderlm.talk.transport import Watch

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SECONDS = 15.0  # for all images of one request
_REDIRECTS = 3
_LONGEST = 2048  # characters of an address
_PORTS = (80, 443)
_TRIES = 3  # of a name's addresses
_UNICAST = ipaddress.ip_network("2000::/3")
_CURE = "send it as a data: URL"
# Public by their number, and yet ways into a network: tunnels to IPv4, relays, clouds' metadata.
_WAYS_IN = [*map(ipaddress.ip_network, (
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32",
))]  # fmt: skip


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, and not this machine's own."""
    if isinstance(address, ipaddress.IPv6Address) and (address not in _UNICAST or address.scope_id):
        return False  # so that none is left that holds an IPv4 address, or stands for one
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _WAYS_IN if network.version == address.version) and not _own(
        address
    )


def _own(address: Address) -> bool:
    """Whether the way to it begins and ends here. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return bool(probe.getsockname()[0] == str(address))
    return False  # there is no way to it


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the system's order; of an address in any spelling, itself."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0])) for entry in found))


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Who resolves, what is allowed, and how long one call may take (seconds)."""

    resolve: Callable[[str, int], Sequence[Address]] = resolve
    allowed: Callable[[Address], bool] = is_public
    ports: Sequence[int] = _PORTS
    verify: ssl.SSLContext | bool = True

    def image(self, url: str, where: str, deadline: float) -> bytes:
        """The bytes of the image at `url`. UsageError, which names `where` and no address, for all that goes wrong.

        `deadline`: by time.monotonic().
        """
        for _ in range(_REDIRECTS + 1):
            parsed = _parsed(url, where)
            data, location = self._get(parsed, where, deadline)
            if data is not None:
                return data
            url = location
            if parsed.scheme == "https" and not url.startswith("https:"):
                raise UsageError("the image's address leads from https to another scheme", where=where)
        raise UsageError(f"the image's address leads on more than {_REDIRECTS} times", where=where)

    def _get(self, url: httpx.URL, where: str, deadline: float) -> tuple[bytes | None, str]:
        """The image, or where a redirect leads."""
        port = (443 if url.scheme == "https" else 80) if url.port is None else url.port
        if port not in self.ports:
            raise UsageError(f"images are not fetched from port {port}", where=where, cure=_CURE)
        addresses = self._checked(url.raw_host.decode(), port, where)
        for address in addresses[:_TRIES]:
            with Watch(None, deadline) as watch:
                try:
                    return self._exchange(url, address, watch, where, deadline)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    continue
                except LadderError as error:
                    if isinstance(error, UsageError):
                        raise
                    break
                except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, AttributeError):
                    break
        what = "takes too long" if time.monotonic() >= deadline else "cannot be fetched"
        raise UsageError(f"the image {what}", where=where, cure=_CURE)

    def _checked(self, host: str, port: int, where: str) -> Sequence[Address]:
        try:
            addresses = self.resolve(host, port)
        except (OSError, ValueError):
            raise UsageError("the image's host is not known", where=where, cure=_CURE) from None
        if not addresses or not all(map(self.allowed, addresses)):
            raise UsageError("images are fetched from the public internet only", where=where, cure=_CURE)
        return addresses

    def _exchange(
        self, url: httpx.URL, address: Address, watch: Watch, where: str, deadline: float
    ) -> tuple[bytes | None, str]:
        """One request over one connection to `address`; the name stays in the Host header and in TLS."""
        left = max(0.01, deadline - time.monotonic())
        client = httpx.Client(verify=self.verify, trust_env=False, timeout=left, follow_redirects=False)
        headers = {"Host": url.netloc.decode(), "Accept": ", ".join(TYPES), "Accept-Encoding": "identity",
                   "User-Agent": "ladderlm", "Connection": "close"}  # fmt: skip
        more = {"sni_hostname": url.raw_host.decode(), "trace": watch.trace}
        request = client.build_request("GET", url.copy_with(host=str(address)), headers=headers, extensions=more)
        with client, contextlib.closing(client.send(request, stream=True)) as response:
            if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
                return None, str(url.join(response.headers["location"]))
            if response.status_code != 200:
                raise UsageError(f"the image's host answers {response.status_code}", where=where, cure=_CURE)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind not in TYPES or response.headers.get("content-encoding", "identity") != "identity":
                raise UsageError("there is no image at that address", where=where, cure=f"take {', '.join(TYPES)}")
            data = bytearray()
            for part in response.iter_raw():
                data += part
                if len(data) > LARGEST:
                    break
            watch.check()  # a socket that was shut reads like the end of the image
            return checked(bytes(data), kind, where), ""


def _parsed(url: str, where: str) -> httpx.URL:
    if len(url) > _LONGEST:
        raise UsageError(f"an address of more than {_LONGEST} characters", where=where, cure=_CURE)
    try:
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host and not parsed.userinfo:
            return parsed.copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):
        pass
    raise UsageError("not an http(s) address without user and password", where=where, cure=_CURE)
