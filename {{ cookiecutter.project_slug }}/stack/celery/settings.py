"""The project's settings, as Celery sees them."""

from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "CELERY_"


class CelerySettings(Mapping[str, Any]):
    """
    Lists each setting CELERY_<NAME> under the name that Celery itself has for it.

    A worker sends its configuration to those that inspect it, such as Flower. Celery hides passwords
    under its own names; under the names of Django's settings, and in all others, it shows them.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings; each is read on access, because a test may override it."""
        self.settings = settings

    def __getitem__(self, name: str) -> Any:
        """Return a setting by either name."""
        if name.islower():
            name = f"{PREFIX}{name.upper()}"
        return self.settings[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of those that the project sets."""
        for name in self.settings:
            if name.startswith(PREFIX):
                yield name.removeprefix(PREFIX).lower()

    def __len__(self) -> int:
        """Return how many there are."""
        return sum(1 for _ in self)
