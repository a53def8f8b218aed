"""Robustness suite, `make harm`: attacks on a running service, each beside a polite caller.

An attack is a function that harms one target. The stage runs the attack while the polite caller calls and the memory is
watched. The judge then compares what was seen with the limits of the case.

target      runs `digits serve` as users do, with its log in a file.
processes   the processes of a service, and their memory.
polite      the polite caller, a process of its own: calls, compressed ones, streams, new connections, probes.
attacker    calls and raw HTTP/2 from another address than the polite caller's.
case        one attack: its flags, the outcomes that are right, its limits.
cases       all of them.
stage       runs cases one after another, and starts the service again where a case has harmed it.
judge       says what was wrong in a report.

floods      floods of HTTP/2 frames and of connections.
hoards      calls, streams, answers and connections that are begun and kept.
messages    messages that are expensive to parse, broken, or full of long and odd values.
crops       files that are expensive to decode.
hostile_networks  ONNX files that crash, hang, grow, or tell lies.
model_files what may lie in a model directory.
loads       bulk work beside single images.
operations  the metrics port, the log, the supervisor and the workers.
captures    the database of captured images, locked, and while workers die.
mutations   mutated messages of all methods: `python -m tests.robustness.mutations --messages 1000000`.
table       prints the reports of all cases: `python -m tests.robustness.table`.
"""
