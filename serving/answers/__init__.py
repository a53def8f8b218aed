"""Answers: digits and probabilities come in; a decision, a code from a lexicon, and an id to report the truth by go out.

- decision.py: the decisions about an answer, and the certified thresholds.
- lexicon.py: looks up a field in a list of valid codes.
- recognition_id.py: packs an answer into its id, and parses the id when the truth is reported.
- byte_template.py: bytes that are copied many times at once, each copy with values of its own.
- single_digit_ids.py: the ids of many answers with one digit each, at once.
"""
