"""From images to decided answers: one call for every front.

recognizer     counts and routes the images, has them read, and returns the answer
    |  crop_queue    frames crops on a thread of its own
    |  (the catalog of the repository, and the batcher of the version that it picks)
    v
policy         threshold, decision, audit, recognition id, capture
"""
