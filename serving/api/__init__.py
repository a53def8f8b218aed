"""The API: from encoded requests to encoded answers, for every transport alike.

A front, such as transport/grpc_front.py, finds the method, admits the caller and hands over bytes.

    dispatch          traces a request, answers it, and turns its error into a status code.
    run_calls         the same for calls of one image that are answered by the run.
    request_counter   counts and logs the requests of both ways.
    digits            digits.v1.DigitService: parses requests, encodes answers.
    digits_by_run     its Recognize and RecognizeStream, answered by the run.
    open_inference    inference.GRPCInferenceService, the Open Inference Protocol.
    infer_messages    the messages of its ModelInfer and ModelStreamInfer.
    infer_by_run      both, answered by the run.
    stream_reply      the future of such an answer in a stream.
    tensors           the tensors in these messages.
    message_template  an encoded message that is filled in for many answers at once.
    bounds            limits on texts and parameters of a request.
    packed            encodes repeated fields from arrays.
    typed_pixels      the pixels in typed contents of a long message.
    wire              counts the fields of a long message before it is built, and outlines a message.
    side_thread       a thread for work on long messages, by turns of clients.
    rpc               describes a method: its parts `parse`, `work` and `encode`, and its way by the run.

Both services call the recognizer.
"""
