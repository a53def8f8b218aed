"""The API: from encoded requests to encoded answers, for every transport alike.

    a front (grpc_front)           finds a method, admits the caller, hands over bytes
        |  answer(method, encoded, call)
    dispatch                       counts, traces, logs, and turns errors into status codes
        |  method.parse, method.work, method.encode
    digits | open_inference        digits.v1.DigitService and inference.GRPCInferenceService
        |  recognize, read_field, infer
    the recognizer

`rpc` describes a method; `tensors` parses and builds the tensors of the Open Inference Protocol.
"""
