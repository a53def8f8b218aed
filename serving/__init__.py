"""The inference service: reads handwritten digits by gRPC, batched, on ONNX Runtime.

The path of a request, which the packages show from the top:

    transport     gRPC in and out: deadline, metadata, streams            grpc_front, stream.
    api           admit, parse, count, trace, encode; errors to codes     dispatch, digits, open_inference.
    recognition   one call for every front: recognize, read_field, infer  recognizer.
    repository    the version that answers                                catalog.
    inference     the queue of a version, batches, one ONNX Runtime run   batcher, classifier.
    recognition   threshold, decision, audit, id, capture                 policy.

Calls of one image can take this path without a task each; README.md has the way by the run.

Beside the path:

    cli           `digits serve`, `check`, `recognize`, ...: everything a person types.
    process       wiring, workers, supervisor, startup and shutdown.
    web           /metrics, /healthz, /readyz.
    feedback      truth becomes accuracy; drift; captured images.
    security      tokens, rate limits, TLS, signing keys.
    telemetry     metrics, logs, traces.
    answers       decisions, lexicons, recognition ids.
    imaging       decodes, finds the ink, frames a crop like MNIST.
    client        the Python client, also a wheel of its own.
    loadtest      `digits loadtest`.

Imports point one way; tests/test_imports.py has the order of the packages.
"""

import os

# ONNX Runtime reports usage to its vendor unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# gRPC logs each failed handshake, and anyone who reaches the port can cause any number of them. GRPC_VERBOSITY=INFO in the
# environment shows these lines again.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
