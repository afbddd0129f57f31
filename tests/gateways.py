"""What may lie between a client and a server: the generated nginx, and a relay that counts connections and breaks them."""

import datetime
import ipaddress
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

from ovr.serving.gateway import Gateway, write_gateway

TOKEN, OTHER_TOKEN = "a-token-of-the-tests.+/", "another-token-of-the-tests"


class Relay:
    """Passes bytes between clients and the server at `url`, on a port of its own."""

    def __init__(self, url, *, context=None):
        scheme, _, place = url.partition("://")
        host, _, port = place.rpartition(":")
        self._target, self._context = (host, int(port)), context
        self.num_connections = 0
        self.received = []  # the first bytes of each connection
        self.canned = []  # answers given instead of the server's, one a connection that sends something
        self.cut_after = None  # bytes of the next answer, after which the connection is reset
        self.held = threading.Event()  # answers stay here
        self._pairs = set()
        self._lock = threading.Lock()
        self._listening = None
        self._port = 0
        self.listen()
        self.url = f"{scheme}{'s' if context else ''}://127.0.0.1:{self._port}"

    def listen(self):
        """Take connections, again on the same port."""
        self._listening = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def refuse(self):
        """Take no more connections, and reset those that there are."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.reset()

    def reset(self):
        """Reset all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for sock in pair:
                _reset(sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.refuse()

    def _accept(self, listening):
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            self.num_connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        try:
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            first = client.recv(1 << 16)
            if not first:
                return client.close()
            self.received.append(first)
            if self.canned:
                client.sendall(self.canned.pop(0))
                return client.close()
            server = socket.create_connection(self._target)
        except OSError:
            return client.close()
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        server.sendall(first)
        back = threading.Thread(target=self._pump, args=(server, client, True), daemon=True)
        back.start()
        self._pump(client, server, False)
        back.join()
        for sock in pair:
            sock.close()

    def _pump(self, source, sink, is_answer):
        with suppress(OSError, ValueError):
            while data := source.recv(1 << 16):
                if is_answer and self.held.is_set():
                    continue
                if is_answer and self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], None
                    sink.sendall(data)
                    break
                sink.sendall(data)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _reset(sock):
    with suppress(OSError):
        if not isinstance(sock, ssl.SSLSocket):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)


def certificates(folder):
    """Write an authority `ca`, and certificates of it for a `server` and a `client`: NAME.pem and NAME.key; return the folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)
    private = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server", "client")}
    names = {name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in private}
    for name, key in private.items():
        builder = x509.CertificateBuilder(names["ca"], names[name], key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(private["ca"].public_key())
        builder = builder.add_extension(own, critical=False)
        if name == "ca":
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
        builder = builder.add_extension(alternative, critical=False)
        certificate = builder.sign(private["ca"], hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(secret)
    return folder


def tls(pem, *, mutual=False):
    """Return how a server with these certificates speaks TLS; with `mutual` it asks for a client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem / "server.pem", pem / "server.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    if mutual:
        context.load_verify_locations(pem / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def gateway(pem, servers, port, **changes):
    """Return the gateway before `servers`."""
    ports = [[int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url)] for server in servers]
    settings = {
        "upstreams": [("127.0.0.1", *both) for both in ports],
        "host": "127.0.0.1",
        "port": port,
        "certificate": pem / "server.pem",
        "key": pem / "server.key",
        "client_ca": None,
        "tokens": {"team-a": TOKEN, "team-b": OTHER_TOKEN},
        "max_body_mb": 1,
        "requests_per_s": 100_000,
        "burst": 1000,
        "max_connections": 64,
        "timeout_s": 30,
        "retry_other": True,
    }
    return Gateway(**{**settings, **changes})


@contextmanager
def gate(folder, pem, servers, **changes):
    """Yield the address of an nginx before `servers`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_gateway(gateway(pem, servers, port, **changes), folder)
    # As root, workers would be another user, who does not reach what is pytest's: they keep bodies above 16 KiB in files there.
    user = " user root;" if os.geteuid() == 0 else ""
    command = ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", f"daemon off;{user}"]
    with (folder / "nginx.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert process.poll() is None, (folder / "nginx.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
