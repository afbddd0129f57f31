"""What a client says without a server; with one: tests/triton/test_answers.py."""

import socket
import threading

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


@pytest.mark.parametrize("answer", [b"\x00\x00\x12\x04\x00", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"])
def test_a_port_of_another_service_is_said_to_be_one(answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def respond():
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=respond)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with Client(url, timeout_s=10) as client, pytest.raises(ServingError, match=f"what answers at {url} is no Triton server"):
            client.card()
        thread.join()
