"""Both clients by one name, so that a test is of both."""

import asyncio

import pytest

from ovr import AsyncClient, Client


class Looped:
    """An `AsyncClient` on an event loop of its own, called like a `Client`."""

    def __init__(self, url, **settings):
        self._client = AsyncClient(url, **settings)
        self._runner = asyncio.Runner()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self._runner.close()

    def close(self):
        self._runner.run(self._client.close())

    def __getattr__(self, name):
        value = getattr(self._client, name)
        return (lambda *args, **kwargs: self._runner.run(value(*args, **kwargs))) if callable(value) else value


CLIENTS = {"threads": Client, "loop": Looped}
# Each client and each protocol once; the other pairs are further variants.
PAIRS = [
    ("threads", "http"),
    ("loop", "grpc"),
    pytest.param(("threads", "grpc"), marks=pytest.mark.exhaustive),
    pytest.param(("loop", "http"), marks=pytest.mark.exhaustive),
]
