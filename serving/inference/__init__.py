"""Runs a model on batches of images.

    submit(pixels, deadline)                                    Answer(rows, arrived, started, ended)
        |                                                              ^
    batcher      a bounded queue, and runners that empty it            |
        |  pace      estimates the wait: would a request be late?      |
        |  entry     what waits in the queue, and whom to tell        |
        |  batch     the slices of a run, and their way back          |
        v                                                              |
    classifier   one ONNX Runtime run: logits, probabilities, whole, digit, confidence, flags

`model` opens an ONNX file and checks it against the contract; `metadata` parses the properties that the file carries.
"""
