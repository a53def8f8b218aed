"""From images to decided answers: one call for every front.

    recognizer    counts and routes the images, has them read, and returns the answer.
    crop_queue    frames crops on a thread of its own; clients take turns.
    policy        threshold, decision, audit, recognition id, capture.
    reading       the requests and answers of the recognizer.
    call_group    calls of one image that are answered by the run: decided, captured and encoded together.

The recognizer asks the catalog of the repository for a version, and submits the images to the version's batcher.
"""
