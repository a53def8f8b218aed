"""Messages between the supervisor and its workers: one JSON object per line, over a socket pair that a worker inherits.

    supervisor to worker                                    worker to supervisor

    configure  number, directory, settings, unloaded.       started    description and version of the served model.
    stop       drain_seconds, grace_seconds.                failed     reason for which the worker can't start.
    apply      id, verb, model.                             applied    id, error.
    result     id, error.                                   change     id, verb, model.
                                                            readiness  unready: the reason, or empty.
                                                            heartbeat  now and then, while the event loop turns.

A Load or Unload call reaches one worker, which requests the change. The supervisor has every worker apply the change,
then sends the result to the worker that requested it.

Texts are cut to 8,000 characters, so no message is longer than a line may be. A line that is too long, or is no message,
raises BrokenChannel: it ends the worker at its other end, never the supervisor.

The channel ends when either process ends. A worker without a supervisor stops listening, drains and exits, as no one could
restart or stop it.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from serving.errors import LoadFailed, RequestError, UnknownModel

log = logging.getLogger(__name__)

Message = dict[str, Any]
Verb = Literal["load", "unload"]

_LINE_BYTES = 4 << 20  # room for the names of thousands of unloaded models

_TEXT_CHARACTERS = 8000
_CUT = "… (cut off)"

# The errors of a Load or Unload that its caller may see; any other is internal.
_PUBLIC_ERRORS: dict[str, type[RequestError]] = {error.__name__: error for error in (UnknownModel, LoadFailed)}


class BrokenChannel(Exception):
    """The other process has sent something that is no message."""


class MessageChannel:
    """One end of the channel between a supervisor and a worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "MessageChannel":
        """Opens the channel over one socket of a pair."""
        return cls(*await asyncio.open_connection(sock=end, limit=_LINE_BYTES))

    def send(self, kind: str, **content: object) -> None:
        """Sends a message. The message is lost if the other process has ended; `receive` then returns None."""
        if not self._writer.is_closing():
            bounded = {name: cut(value) if isinstance(value, str) else value for name, value in content.items()}
            self._writer.write(json.dumps({"kind": kind, **bounded}).encode() + b"\n")

    async def receive(self) -> Message | None:
        """Returns the next message; None once the other process has closed the channel.

        Raises:
            BrokenChannel: a line is too long, or is no message.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        except ValueError as error:
            raise BrokenChannel(f"a message is longer than {_LINE_BYTES} bytes") from error
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BrokenChannel("a message is not JSON") from error
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise BrokenChannel("a message is not an object with a kind")
        return message

    async def close(self) -> None:
        """Closes the channel once all messages are sent."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            log.debug("the other end was closed first")


def cut(text: str) -> str:
    """Returns a text that a message can carry: all of it, or its beginning."""
    return text if len(text) <= _TEXT_CHARACTERS else text[: _TEXT_CHARACTERS - len(_CUT)] + _CUT


async def error_of(change: Callable[[str], Awaitable[None]], model: str) -> list[str] | None:
    """Applies a change to a model, and returns its error as a message carries it.

    Returns:
        Name and text of the error; None if the change succeeded.
    """
    try:
        await change(model)
    except tuple(_PUBLIC_ERRORS.values()) as error:
        return [type(error).__name__, cut(str(error))]
    except Exception as error:
        log.exception("loading or unloading %s failed", model)
        return [type(error).__name__, "internal error"]
    return None


def resolve(waiting: "asyncio.Future[None]", error: list[str] | None) -> None:
    """Completes a caller's wait, with the error that a message carried, if any."""
    if error is None:
        waiting.set_result(None)
    else:
        kind, text = error
        waiting.set_exception(_PUBLIC_ERRORS.get(kind, RuntimeError)(text))
