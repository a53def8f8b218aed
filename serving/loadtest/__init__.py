"""`digits loadtest`: how much a service carries, and how fast, measured from outside.

    command line ──> plan        what to send, how, how long
                      │
                      ▼
                     processes   several, so that they are not what is measured; one plan's share each
                      │            generator: an open loop sends when calls are due, a closed one when answers have come
                      │            calls: the RPCs, their requests, and what their answers should be
                      ▼
                     tally       answers by code, right or wrong, and their times in an HDR histogram; added up
                      │
                      ▼
                     report      table, JSON, picture; knee: the same again and again, faster, until an objective breaks

In an open loop a call's time counts from when it was due, not from when it was sent: a server that stands still for a second
is slow to all who came in that second, although a sender that waits for it would have asked only once ("coordinated
omission": G. Tene, How NOT to Measure Latency, 2013).
"""
