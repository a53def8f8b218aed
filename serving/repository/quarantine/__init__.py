"""Quarantine of model files: a file is hostile until a process of its own has loaded and tried it.

    Loader -> Quarantine -> Examination ~~~ child process: reads the file into sealed memory, loads it, tries it
                   |    <- verdict
                   `-> Classifier, opened from the very bytes that were tried

quarantine.py: opens a version, after a child process has examined it or did so before.
examination.py: one child process as its parent sees it; makes a verdict of whatever happens to the child.
child.py: the main program of the child process.
verdicts.py: keeps verdicts across restarts, and lets one process at a time examine a file.

A file that crashes, hangs or fills memory costs a child process. The refusal is kept by the content of the file.
"""
