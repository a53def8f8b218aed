"""Runs a model on batches of images.

    submit(pixels, deadline), or enter(entry)                   Answer(rows, arrived, started, ended), or Group.answer
        |                                                              ^
    batcher      a bounded queue, and runners that empty it            |
        |  entry        what waits in the queue, and whom to tell      |
        |  entry_queue  entries take turns                             |
        |  pace         estimates the wait: would a request be late?   |
        |  batch        the slices of a run, and their way back        |
        v                                                              |
    classifier   one ONNX Runtime run: logits, probabilities, whole, digit, confidence, flags

`model` opens an ONNX file and checks it against the contract; `metadata` parses the properties that the file carries.
"""
