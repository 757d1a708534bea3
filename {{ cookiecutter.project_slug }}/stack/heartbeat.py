"""The heartbeat of this process: a file whose age stack/watchdog checks."""

import threading
import time
from pathlib import Path

FILE = Path("/tmp/heartbeat")


def touch(**kwargs: object) -> None:
    """Show that this process works; a receiver of heartbeat_sent."""
    FILE.touch()


def touch_until_the_end(**kwargs: object) -> None:
    """Go on from a thread while a worker's last tasks end: its event loop has stopped by then."""

    def keep_touching() -> None:
        while True:
            touch()
            time.sleep(5)

    threading.Thread(target=keep_touching, daemon=True).start()
