"""The HTTP proxy through which gRPC connects, by the variables of the environment that gRPC reads.

Source: gRPC core, http_proxy_mapper.cc.
"""

import ipaddress
import os
from urllib.parse import urlsplit

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_NO_PROXY_SCHEMES = ("unix:", "unix-abstract:", "vsock:")


def describe_proxy(address: str) -> str:
    """Describes the proxy between this client and an address, with the remedy; "" without a proxy."""
    variable = next((name for name in _PROXIES if os.environ.get(name)), "")
    if not variable or address.startswith(_NO_PROXY_SCHEMES):
        return ""
    host = _host(address)
    exceptions = next((name for name in _EXCEPTIONS if os.environ.get(name)), "")
    if exceptions and any(_excepts(entry.strip(), host) for entry in os.environ[exceptions].split(",")):
        return ""
    proxy = urlsplit(os.environ[variable])
    shown = proxy.netloc.rpartition("@")[2] or "an address that can't be parsed"  # never the password
    return (
        f"the environment variable {variable} sends this connection through the proxy {shown}: unset it, or add {host} to "
        f"{exceptions or 'no_proxy'}"
    )


def _host(address: str) -> str:
    """Returns the first host of an address that gRPC resolves."""
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    if address.startswith("//"):  # dns://SERVER/NAME:PORT
        address = address[2:].partition("/")[2]
    first = address.split(",")[0]
    if first.startswith("["):
        return first[1:].partition("]")[0]
    return first.rpartition(":")[0] if first.count(":") == 1 else first


def _excepts(entry: str, host: str) -> bool:
    try:
        return bool(entry) and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and host.lower().endswith(entry.lower())
