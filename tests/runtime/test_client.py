"""What a client says without a server; with one: tests/triton/test_answers.py."""

import numpy as np
import pytest

from ovr import Client
from ovr.errors import ServingError


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "", "http://127.0.0.1:port", "http://127.0.0.1:99999"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ServingError, match=r"server address .* is not understood"):
        Client(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "grpc://127.0.0.1:9", "http://[::1]:9", "http://no-such-host.invalid:8000"])
def test_a_server_that_is_not_there_is_said_with_its_address(url):
    with Client(url, timeout_s=20) as client, pytest.raises(ServingError, match="no server answers at") as caught:
        client.card()
    assert url in str(caught.value)


def test_nothing_is_sent_before_the_card_is_known():
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServingError, match="no server answers"):
        client.predict(np.zeros((1, 2)))
