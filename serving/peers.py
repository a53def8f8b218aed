"""Addresses of clients: which of them count as one client."""

import ipaddress
from urllib.parse import unquote


def network(host: str) -> str:
    """Returns what counts as one client: an IPv4 address, or an IPv6 network of 64 bits, which one client owns."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))


def network_of(peer: str) -> str:
    """Returns the network of an address as gRPC writes it, such as "ipv4:10.0.0.1:1234" or "ipv6:[::1]:1234"."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0]  # gRPC's own front writes %5B for [
    return network(host.strip("[]"))
