"""The container's health check: exit status 0 while the service wants traffic; else 1, and the reason on stderr.

It asks the port that DIGITS_METRICS_PORT names, not one that a flag or a file does.
"""

import http.client
import os
import sys

port = int(os.environ.get("DIGITS_METRICS_PORT") or 8002)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
try:
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    reason = answer.read().decode().strip()
except OSError as error:
    sys.exit(f"127.0.0.1:{port}: {error}")
if answer.status != http.HTTPStatus.OK:
    sys.exit(f"not ready: {reason}")
