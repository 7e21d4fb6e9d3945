"""Connections that can't be led astray: to public addresses only, and never past a deadline.

The check is made at the address that is then connected to, for every connection: a redirect, a notation
(`http://2130706433/`), or a name that changes its answer between check and use (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore2

from deit_batch.errors import FetchError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits

_IPV6_IN_USE = ipaddress.ip_network("2000::/3")
"""All that the registries have given out of (iana.org, "IPv6 Global Unicast Address Space")."""

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20"),
    )
)
"""iana.org, "IPv4" and "IPv6 Special-Purpose Address Registry", beside what the installed Python knows of them: each
version knows other ones."""


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the public internet: not private, loopback, link-local (where clouds keep
    their metadata), multicast or reserved, nor an IPv6 form of such an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        if ip not in _IPV6_IN_USE:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in _NOT_PUBLIC))


class _Stream(httpcore2.NetworkStream):
    """A connection whose every wait ends at the deadline of the request that waits."""

    def __init__(self, inner: httpcore2.NetworkStream, network: Network) -> None:
        self._inner = inner
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._network.seconds_left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._network.seconds_left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, self._network.seconds_left()), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class Network(httpcore2.NetworkBackend):
    """What the HTTP client connects through. Each thread works on one request at a time, before its own deadline."""

    def __init__(self, *, allow_private_hosts: bool) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._inner = httpcore2.SyncBackend()
        self._request = threading.local()

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """All that this thread does in here must be done within so many seconds."""
        self._request.deadline = time.monotonic() + seconds
        yield

    def seconds_left(self) -> float:
        left: float = self._request.deadline - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        problem: Exception = FetchError(f"{host} has no address")
        for address in self._addresses(host, port):
            try:
                stream = self._inner.connect_tcp(address, port, self.seconds_left(), local_address, socket_options)
                return _Stream(stream, self)
            except httpcore2.ConnectError as error:
                problem = error
        raise problem

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise FetchError(f"{host} can't be found: {error}") from error
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        if not self._allow_private_hosts and not all(map(is_public, addresses)):
            raise FetchError(
                f"{host} is no host of the public internet ({', '.join(addresses)}); --allow-private-hosts permits it "
                "(from Python: limits=Limits(allow_private_hosts=True))"
            )
        return addresses
