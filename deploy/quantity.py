"""Parses quantities of Kubernetes, such as 2500m and 512Mi."""

_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_quantity(text: str | float) -> float:
    """Parses a quantity into its base unit: cores, bytes or a plain number.

    Source: Kubernetes, apimachinery, Quantity.

    Raises:
        KeyError: the unit is unknown.
    """
    written = str(text)
    unit = written.lstrip("0123456789.")
    return float(written.removesuffix(unit)) * (_UNITS[unit] if unit else 1)
