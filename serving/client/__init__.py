"""The Python client: `DigitClient` sends images and gets digits back."""

from serving.client.client import DigitClient, Field, Recognition, Refusal

__all__ = ["DigitClient", "Field", "Recognition", "Refusal"]
