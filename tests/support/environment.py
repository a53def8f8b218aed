"""The environment of a test run, without the variables of one machine or user that would change an outcome."""

from collections.abc import MutableMapping

TEST_DATA = {"DIGITS_DATA", "DIGITS_YOLO"}  # files that some tests need, and are skipped without

_PREFIXES = (
    "DIGITS_",  # settings of the service and of training
    "OTEL_",  # where a service sends its traces
    "GRPC_",  # the log level of gRPC, and its own settings
    "PROMETHEUS_",  # another metrics directory than the one of a test
    "KERAS_",  # another backend
)

_NAMES = {
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY"),  # a test calls servers on its own machine
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS"),  # the look of help texts and tables
    *("PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONASYNCIODEBUG"),  # in the processes that a test starts
}


def unset_machine_variables(environment: MutableMapping[str, str]) -> None:
    """Removes the settings of our own programs and of the libraries that they use; the names of test data stay."""
    for name in list(environment):
        if name.upper() in _NAMES or (name.startswith(_PREFIXES) and name not in TEST_DATA):
            del environment[name]
