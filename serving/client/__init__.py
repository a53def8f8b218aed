"""The Python client of the service: images in, digits with a confidence and a decision out.

The client is also a small wheel of its own, `postal-digits-client`, where this package is `postal_digits.client`. So it
imports nothing of `serving` except the stubs in `pb`, and it imports them relatively.

    client        DigitClient: one method per RPC, each with a deadline.
    arguments     checks the other arguments of the client.
    requests      checks images and crops, and builds the requests.
    truths        builds the requests that report true values.
    answers       Recognition, Field, Decision.
    failed_calls  the errors of calls that failed.
    proxy         the proxy that the environment puts in the way.
    channel       connections: load balancing, retries, replacement when certificates are renewed.
    credentials   TLS from PEM files.
    pem           checks PEM files.
    image_files   reads image files with Pillow, which nothing else here needs.
"""

from .answers import Decision, Field, Recognition, Refusal
from .client import DigitClient
from .credentials import channel_credentials
from .failed_calls import ProxyUnavailable, ResourceExhausted
from .pem import CredentialsError
from .truths import NO_DIGIT

__all__ = [
    "NO_DIGIT",
    "CredentialsError",
    "Decision",
    "DigitClient",
    "Field",
    "ProxyUnavailable",
    "Recognition",
    "Refusal",
    "ResourceExhausted",
    "channel_credentials",
]
