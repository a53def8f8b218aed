"""The API: from encoded requests to encoded answers, for every transport alike.

A front, such as transport/grpc_front.py, finds the method, admits the caller and hands over bytes.

    dispatch         counts, traces and logs a request, and turns its error into a status code.
    digits           digits.v1.DigitService: parses requests, encodes answers.
    open_inference   inference.GRPCInferenceService, the Open Inference Protocol.
    infer_messages   the messages of its ModelInfer.
    tensors          the tensors in these messages.
    rpc              describes a method: its parts `parse`, `work` and `encode`.

Both services call the recognizer.
"""
