"""HTTP for operators: requests of Prometheus and of probes in, metrics and health out.

    operations.py  /metrics, /healthz and /readyz, in threads beside the event loop.

The process that owns the metrics runs it: a single server, or the supervisor of several workers.
"""
