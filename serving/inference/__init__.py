"""Runs a model on batches of images.

    submit(pixels, deadline), or enter(entry)                   Answer(rows, arrived, started, ended), or Group.answer
        |                                                              ^
    batcher      a bounded queue, and runners that empty it            |
        |  entry        what waits in the queue, and whom to tell      |
        |  admission    has the queue room and time for a request?     |
        |  entry_queue  what waits for a run                           |
        |  priorities   live before batch                              |
        |  fair_queue   clients take turns                             |
        |  pace         seconds an image, from the last runs           |
        |  batch        the slices of a run, and their way back        |
        v                                                              |
    classifier   one ONNX Runtime run: logits, probabilities, whole, digit, confidence, flags

`model` opens an ONNX file and checks it against the contract; `metadata` parses the properties that the file carries;
`external_data` finds weights that lie outside the file.
"""
