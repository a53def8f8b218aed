"""The Python client of the service: images in, digits with a confidence and a decision out.

The client is also a small wheel of its own, `postal-digits-client`, where this package is `postal_digits.client`. So it
imports nothing of `serving` except the stubs in `pb`, and it imports them relatively.

    client        DigitClient: one method per RPC, each with a deadline.
    arguments     checks the other arguments of the client.
    requests      checks images and crops, and builds the requests.
    truths        builds the requests that report true values.
    answers       Recognition, Field, Decision, and the errors of refused calls.
    channel       connections: load balancing, retries, replacement when certificates are renewed.
    credentials   TLS from PEM files.
    pem           checks PEM files.
    image_files   reads image files with Pillow, which nothing else here needs.
"""

from .answers import Decision, Field, Recognition, Refusal, ResourceExhausted
from .client import DigitClient
from .credentials import channel_credentials
from .pem import CredentialsError
from .truths import NO_DIGIT

__all__ = [
    "NO_DIGIT",
    "CredentialsError",
    "Decision",
    "DigitClient",
    "Field",
    "Recognition",
    "Refusal",
    "ResourceExhausted",
    "channel_credentials",
]
