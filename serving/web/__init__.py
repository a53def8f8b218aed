"""HTTP for operators: requests of Prometheus and of probes in, metrics and health out.

    operations.py    /metrics, /healthz and /readyz: what is answered.
    bounded_http.py  HTTP in threads beside the event loop, with limits on what clients may hold.

The process that owns the metrics runs it: a single server, or the supervisor of several workers.
"""
