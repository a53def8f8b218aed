"""Feedback on answers: reported truth, accuracy, drift, and captured images to learn from.

In: each answer with its images, from the recognizer, and the truths that callers report. Out: metrics for operators and,
with capture on, a database of images and truths for the next training.

    truth             checks, stores and counts reported truths, each once.
    accuracy          accuracy and audited error, derived from the counts of truth.
    drift             how far served images are from a version's training images, and the estimated accuracy.
    capture           hands images and truths to a thread that stores them.
    capture_records   selects the images to capture; the rows to store.
    turns             lets others have the event loop during a long report.
    capture_store     the database: SQLite or PostgreSQL.
"""
