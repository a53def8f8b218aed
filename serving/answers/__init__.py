"""Answers: digits and probabilities come in; a decision, a code from a lexicon, and an id to report the truth by go out.

- decision.py: the decisions about an answer, and the certified thresholds.
- lexicon.py: looks up a field in a list of valid codes.
- recognition_id.py: packs an answer into its id, and parses the id when the truth is reported.
"""
