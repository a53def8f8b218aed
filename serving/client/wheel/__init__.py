"""Client of the postal-digits service, which reads handwritten digits over gRPC.

    from postal_digits import DigitClient

    with DigitClient("127.0.0.1:8001", timeout_seconds=1.0) as client:
        answer = client.recognize(Path("7.png").read_bytes())
        print(answer.digit, answer.confidence, answer.decision.name)

`postal_digits.client.image_files` reads image files with Pillow. `postal_digits.pb` has the gRPC stubs.
"""

from importlib.metadata import version

from .client import (
    NO_DIGIT,
    CredentialsError,
    Decision,
    DigitClient,
    Field,
    ProxyUnavailable,
    Recognition,
    Refusal,
    ResourceExhausted,
    channel_credentials,
)

__version__ = version("postal-digits-client")

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
    "__version__",
    "channel_credentials",
]
