import pytest

from ovr.serving import embedded
from ovr.serving.server import start


@pytest.fixture(scope="session")
def installed():
    """The embedded server, installed on the first run (about half a minute)."""
    return embedded.install()


@pytest.fixture
def started(installed):
    """`start`, with every server stopped at the end of the test whatever happens."""
    servers = []

    def begin(*args, **kwargs):
        servers.append(start(*args, **kwargs))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()
