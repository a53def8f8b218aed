"""The HTTP port for operators: /metrics for Prometheus, /healthz and /readyz for probes."""

import gzip
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from serving.feedback.accuracy import AccuracyCollector
from serving.feedback.drift import DriftCollector
from serving.ports import listen
from serving.web.bounded_http import Answer, BoundedHttp, Page, text

log = logging.getLogger(__name__)


class HttpServer:
    """Answers HTTP on its own port, in its own threads, until it is closed.

    /healthz and /readyz answer 200, or 503 with the reason. /metrics collects the metrics for each scrape.

    Attributes:
        port: the port on which it listens; the actual one if 0 was asked for.
    """

    def __init__(self, host: str, port: int, metrics: Collector, *, lost: Callable[[], str], unready: Callable[[], str]):
        """Starts to listen and to answer.

        Args:
            host: address to listen on.
            port: port to listen on; 0 takes any free port.
            metrics: collected for every scrape, in a thread of this server; accuracy and drift are derived from them.
            lost: returns the reason why the process should be restarted, empty if it is alive; called in a thread of
                this server. It may take seconds.
            unready: returns the reason why the service accepts no traffic, empty if it does; called in such a thread.

        Raises:
            PortTaken: the port is taken or not allowed.
        """
        listening = listen(host, port, "metrics")
        self.port: int = listening[0].getsockname()[1]
        pages = {
            "/metrics": _metrics_page(DriftCollector(AccuracyCollector(metrics))),
            "/healthz": _state_page(lost, "alive"),
            "/readyz": _state_page(lambda: unready() or lost(), "ready"),
        }
        self._http = BoundedHttp(listening, pages, "not found; this port has /metrics, /healthz and /readyz")

    def close(self) -> None:
        """Stops answering and closes the port."""
        self._http.close()


def _state_page(why_not: Callable[[], str], good: str) -> Page:
    def make(_: None) -> Answer:
        reason = why_not()
        return text(HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK, f"{reason or good}\n")

    return Page(lambda _: None, make)


# All that a scraper can get, by content type. A fixed set: a client could ask for any number of versions.
_ESCAPINGS = ("underscores", "dots", "values", "allow-utf-8")
_ACCEPTED = [
    "application/openmetrics-text",
    *(
        f"{kind};version=1.0.0;escaping={way}"
        for kind in ("application/openmetrics-text", "text/plain")
        for way in _ESCAPINGS
    ),
]
_PLAIN = choose_encoder("")[1]
_ENCODERS = {content_type: encode for encode, content_type in map(choose_encoder, ["", *_ACCEPTED])}


class _Form(NamedTuple):
    """The content type that a scraper understands, and whether it takes gzip."""

    content_type: str
    gzip: bool


def _metrics_page(metrics: Collector) -> Page:
    def form(headers: Mapping[str, str]) -> _Form:
        return _Form(_content_type(headers.get("accept", "")), gzip_accepted(headers.get("accept-encoding", "")))

    def make(form: _Form) -> Answer:
        try:
            page = _ENCODERS[form.content_type](metrics)
        except Exception:
            log.exception("the metrics could not be collected")
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, "the metrics could not be collected; the log says why\n")
        headers = {"Content-Type": form.content_type}
        if form.gzip:
            page = gzip.compress(page, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        return Answer(HTTPStatus.OK, page, headers)

    return Page(form, make)


def _content_type(accept: str) -> str:
    """Returns the content type for an Accept header; plain text if the header or its version is unknown."""
    try:
        _, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        return _PLAIN
    return content_type if content_type in _ENCODERS else _PLAIN
