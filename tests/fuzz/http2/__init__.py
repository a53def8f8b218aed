"""Fuzz test of the HTTP/2 front: mutated conversations of clients, given to connections in this process.

conversations  makes valid conversations, as lists of frames.
mutations      breaks them: frames first, then bytes.
handlers       answers the calls: echoes, failures, streams.
client         feeds one connection by a transport without a socket, and leaves it.
checks         says what is left over once all clients have gone.
__main__       runs for a time, or for a number of conversations.
"""
