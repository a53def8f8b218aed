"""Model repository: versions on disk come in, loaded versions that answer requests go out.

- catalog.py: routes a request to the version that answers it; on the path of every request.
- repository.py: polls the disk, and assigns the roles stable, canary and shadow.
- followed.py: the directory of one model, as far as it was followed; applies its routing.
- loader.py: loads versions beside those that serve, and drains a version that is retired.
- quarantine/: loads and tries a file in a process of its own before this process opens it.
- versions.py: version directories on disk.
- skipped.py: logs the directories that are not served, with the reason.
- routing.py: routing.toml, which names the version of each role.
- shadow.py: runs a second version on the images that stable has answered, and counts disagreement.
- model_control.py: interface to load and unload a model on request.

A new version is loaded, checked and warmed up beside the one that serves, and replaces it only then. A version that can't be
served is refused with its reason. The version before keeps serving, even when its file is gone. Nothing waits for a version
that hangs: other versions are loaded meanwhile.
"""
