"""Servers in the process of the test; the fixture `start_server` starts them."""

from collections.abc import Awaitable, Callable

from serving.process.server import Server

StartServer = Callable[..., Awaitable[Server]]
"""Starts a server on free ports, with the settings given by name."""
