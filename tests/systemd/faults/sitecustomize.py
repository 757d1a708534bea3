"""
Faults that a process brings on itself when it is told to.

Every Python that has this folder in PYTHONPATH imports this module at its start.
"""

import os
import signal

LIMIT = 2**30  # above every memory limit here; beyond it the limit did not hold


def hog(*args: object) -> None:
    """Allocate and use memory until the kernel ends it."""
    held = []
    for _ in range(LIMIT >> 24):
        held.append(b"x" * (1 << 24))
    os._exit(99)


signal.signal(signal.SIGRTMIN + 1, lambda *args: os._exit(1))
signal.signal(signal.SIGRTMIN + 2, lambda *args: os._exit(0))
signal.signal(signal.SIGRTMIN + 3, hog)
