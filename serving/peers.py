"""Clients that share what there is: which addresses count as one client, and who has most."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar
from urllib.parse import unquote

Holder = TypeVar("Holder")


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


def heaviest(holders: Iterable[Holder], weight: Callable[[Holder], int], *groups: Callable[[Holder], Hashable]) -> Holder:
    """Returns the holder with most, in the group that has most together, in each grouping in turn.

    Args:
        holders: at least one.
        weight: what a holder has.
        groups: name the group of a holder, the widest groups first.
    """
    among = [*holders]
    for group in groups:
        sums: Counter[Hashable] = Counter()
        for holder in among:
            sums[group(holder)] += weight(holder)
        most = max(sums, key=lambda name: sums[name])
        among = [holder for holder in among if group(holder) == most]
    return max(among, key=weight)
