import http.server
import threading

import pytest

from ovr.errors import ServingError
from ovr.serving.control import check_live, load_model


def test_a_server_that_is_not_there_is_said_with_its_address():
    with pytest.raises(ServingError, match=r"no Triton server answers at http://127\.0\.0\.1:9/v2/health/live: .*refused"):
        check_live("http://127.0.0.1:9")


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:8001", "127.0.0.1:8000", ""])
def test_an_address_that_is_not_http_is_refused(url):
    with pytest.raises(ServingError, match="model control needs the server's HTTP address"):
        load_model(url, "ovr")


def test_what_is_no_triton_server_is_told_in_its_own_words():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *args: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ServingError, match=r"(?s)the server refused .*File not found"):
            check_live(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
