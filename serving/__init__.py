"""From a request to an answer. `python -m serving --help` is the way in.

    client -- gRPC --> edge               who calls, decode, deadline; errors to status codes; count, log, trace
                         | work(request, call)
                       digit_service      digits.v1: decoded requests to decoded answers
                       open_inference     inference, the Open Inference Protocol: likewise
                         | read(pixels or crops, call, model, version, key); `decider` accepts or rejects what was read
                       recognizer         limits, crops framed, the version that is to answer
                         | submit(pixels, deadline)
                       batcher            one a version: a bounded queue; whatever waits when a runner is free is a batch
                         | infer(images)
                       reader             what the model says, made out and counted, a run at a time
                         | infer(images)
                       model              one ONNX Runtime session, its contract checked when it was loaded

`pictures` decodes files, `ink` tells ink from paper, and `framing` makes of it what MNIST's makers would;
`decision` has the thresholds that a model's training has certified, and `lexicon` the codes that a field may say.

What comes afterwards: `recognition_id` ties truth to its answer, `truths` counts it, and `accuracy` and `drift` say at each
scrape what the counts mean; `capture` keeps in `capture_store` what was rejected or marked for audit, to learn from.

`server` wires the path, binds the ports, and stops without losing a call; `repository` keeps the versions that serve, in the
roles that `routing` gives them; `access` says who may call, `tls` encrypts, and `credentials` reads the files of both;
`settings` holds what an operator can set, `metrics` what they can see; `client` is the other end of the wire, and `loadtest`
many of them. With several workers, each is a process with the whole path, and `supervisor` keeps them alive.
"""

import os

# ONNX Runtime reports its use to its makers unless it is told not to, before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# gRPC would write a line for every handshake that fails, and whoever can reach the port can have as many fail as they like.
# GRPC_VERBOSITY=INFO in the environment shows them again.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
