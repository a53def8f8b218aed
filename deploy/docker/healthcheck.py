"""Health check of the container: exits with 0 while the service is ready, else with 1 and the reason on stderr.

The port comes from DIGITS_METRICS_PORT. A port set by a flag or a settings file is not seen here.
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
    sys.exit(f"no answer from 127.0.0.1:{port}: {error}")
if answer.status != http.HTTPStatus.OK:
    sys.exit(f"not ready: {reason}")
