"""Security: the metadata of a call comes in, the Client who made it goes out; credential files are reloaded while serving.

- tokens.py: authenticates calls by bearer token, checks the client's role, and charges its rate limit.
- token_file.py: TOML file of the clients.
- rate_limits.py: images a second of each client, shared by the processes of one machine.
- tls.py: TLS and mutual TLS, for the server.
- tls_trial.py: a handshake with ourselves, before a certificate is used.
- signing_keys.py: keys that sign recognition ids.
- credential_files.py: reloads tokens and certificates when their files change.
"""
