"""The sign of life that config/alive looks at."""

import threading
import time
from pathlib import Path

FILE = Path("/tmp/heartbeat")


def beat(**kwargs: object) -> None:
    """Show that this process works; as a receiver of a signal, too."""
    FILE.touch()


def beat_to_the_end(**kwargs: object) -> None:
    """Beat from a thread while a worker's last tasks end, because its event loop no longer does."""

    def keep_beating() -> None:
        while True:
            beat()
            time.sleep(5)

    threading.Thread(target=keep_beating, daemon=True).start()
