"""Certifies an existing version on mail that it was not trained on: `digits-train certify`.

    Dataset, from `sources`  -> mail      \
                                         OwnMail -> recertify -> a new version: same network, new thresholds
    capture database         -> captured  /            |
                                            lexicon, shortfall

- `captured` draws an unbiased sample of all mail from what a service captured.
- `lexicon` reads fields as the service does when a caller names a lexicon.
- `learned` refuses mail that the version was trained on.
- `shortfall` says how much more mail a certificate needs.
"""

from training.own_mail.captured import captured_mail
from training.own_mail.learned import require_unseen, trained_at
from training.own_mail.lexicon import LexiconFile
from training.own_mail.mail import mail_of
from training.own_mail.recertify import recertify

__all__ = [
    "LexiconFile",
    "captured_mail",
    "mail_of",
    "recertify",
    "require_unseen",
    "trained_at",
]
