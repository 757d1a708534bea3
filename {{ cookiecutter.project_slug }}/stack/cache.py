"""The serializer of Django's cache."""

import json


class JsonSerializer:
    """
    Stores values as JSON, instead of Django's pickle.

    What pickle loads can run any code, so whatever can write to the cache could run code in the web.
    https://docs.djangoproject.com/en/6.1/topics/cache/#redis
    """

    def dumps(self, value: object) -> str:
        """Return a value as the cache keeps it; a number is one that Redis can count."""
        return json.dumps(value)

    def loads(self, data: bytes) -> object:
        """Return the value; ValueError when it is not JSON."""
        return json.loads(data)
