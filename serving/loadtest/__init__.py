"""`digits loadtest`: measures a service's capacity and latency from outside.

    flags           what the command takes, and the plan that the flags describe.
     │
     ▼
    command         runs the plan; tables, files and an exit status out.
     │
     ▼
    plan            the calls to send, their rate, and the duration; `objectives` are such as `p99=20ms`.
     │
     ▼
    processes       several senders, so that the sender does not limit the result; each has a share of the plan.
     │  generator   an open loop sends when calls are due, a closed loop after each answer.
     │  lateness    windows of 0.1 s in which the sender itself was late; their calls are discarded.
     │  target      the generator's interface to a server; other servers than ours implement it too.
     │  calls       its gRPC side: the RPCs, their requests, and the expected answers.
     │  connect     the same calls by the Connect protocol, on connections of `http2`.
     ▼
    tally           calls by status code, right and wrong answers, and latencies in an HDR histogram.
     │
     ▼
    report          table, JSON, picture; `confidence` in the percentiles.
    knee            repeats the measurement at rising rates until an objective is missed.

In an open loop, a call's latency counts from when it was due, not from when it was sent. A service that stalls for a second
is slow for all calls due in that second. A sender that waits for the answer would have sent only one of these calls
("coordinated omission": G. Tene, How NOT to Measure Latency, 2013).
"""
