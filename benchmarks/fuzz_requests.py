"""Requests that are wrong, as HTTP and gRPC take them; each kind is a generator. Knows no server, nor what it should answer.

D = values of a row
"""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from benchmarks.export import D


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request as it is sent."""

    path: str
    body: bytes
    headers: dict[str, str]
    method: str = "POST"


def good(rows: int = 2) -> dict[str, Any]:
    """Return a request that is right."""
    data = [0.1] * (rows * D)
    return {"inputs": [{"name": "x", "shape": [rows, D], "datatype": "FP32", "data": data}], "outputs": [{"name": "prob"}]}


# HTTP ----------------------------------------------------------------------------------------------------------------------------


def wrong_field(rng: random.Random) -> dict[str, Any]:
    request = good()
    tensor = request["inputs"][0]
    junk: list[Any] = [
        None,
        True,
        "",
        "x" * 5000,
        [],
        {},
        [[]],
        {"a": 1},
        -1,
        2**70,
        1e300,
        "\u0000",
        "../../etc/passwd",
        [None] * 3,
    ]
    where = rng.randrange(6)
    if where == 0:
        tensor["shape"] = rng.choice(
            [[], [2], [-1, D], [2, -D], [0, D], [2**62, D], [2, D, 1], [2.5, D], ["2", D], "2,1", None, {}, [2**70, 2], [2, D + 1]]
        )
    elif where == 1:
        tensor["datatype"] = rng.choice(
            ["FP64", "INT32", "BYTES", "BOOL", "UINT8", "FP16", "fp32", "", "FP32 ", 7, None, [], "X" * 100]
        )
    elif where == 2:
        tensor["name"] = rng.choice(["y", "", "X", "x ", "prob", 1, None, {}, "n" * 100_000, "../x"])
    elif where == 3:
        tensor["data"] = rng.choice(
            [
                [],
                [0.1],
                [0.1] * (2 * D + 1),
                ["a"] * (2 * D),
                [None] * (2 * D),
                "data",
                None,
                {},
                [[0.1] * D, [0.1] * (D - 1)],
                [True] * (2 * D - 1),
                [[[0.1]]],
            ]
        )
    elif where == 4:
        request[rng.choice(["inputs", "outputs"])] = rng.choice([j for j in junk if j not in ([], None)])
    else:
        del tensor[rng.choice(list(tensor))]
    return request


def wrong_tree(rng: random.Random) -> dict[str, Any]:
    request = good()
    which = rng.randrange(6)
    if which == 0:
        request["inputs"] = request["inputs"] * rng.randint(2, 50)
    elif which == 1:
        request["inputs"] = []
    elif which == 2:
        del request["inputs"]
    elif which == 3:
        request["outputs"] = [{"name": rng.choice(["none", "", 5, None])}]
    elif which == 4:
        request["inputs"].append({"name": "z", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]})
    else:
        request["inputs"][0]["parameters"] = {"binary_data_size": rng.choice([-1, 2**63, "8", 1.5, 7, 10**6])}
    return request


def json_body(rng: random.Random) -> bytes:
    return json.dumps(rng.choice([wrong_field, wrong_tree])(rng)).encode()


def cut(rng: random.Random) -> bytes:
    body = json.dumps(good()).encode()
    return body[: rng.randrange(len(body) - 1)]


def flipped(rng: random.Random) -> bytes:
    """Return a good body whose punctuation is broken."""
    body = bytearray(json.dumps(good()).encode())
    places = [i for i, byte in enumerate(body) if byte in b'{}[]:"']
    for place in rng.sample(places, rng.randint(1, 3)):
        body[place] = rng.choice(b"@#\x00\xff|")
    return bytes(body)


def noise(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"",
            rng.randbytes(rng.randint(1, 2000)),
            b"[" * rng.randint(1, 20_000),
            b'{"a":' * rng.randint(1, 5_000),
            b"null",
            b"[]",
            b"7",
            b'"x"',
            b"{}",
            b"\xef\xbb\xbf{}",
            b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[NaN]}]}',
        ]
    )


def not_a_number(rng: random.Random) -> bytes:
    text = json.dumps(good())
    words = ["NaN", "Infinity", "-Infinity", "1e999", "1e39", "nan", "0x1", "01", ".5", "1."]
    return text.replace("0.1", rng.choice(words), rng.randint(1, 3)).encode()


def to_a_model(rng: random.Random, model: str) -> Request:
    """Return a request to a model that is there, with a wrong body."""
    body = rng.choice([json_body, json_body, json_body, cut, flipped, noise])(rng)
    if rng.random() < 0.15:  # the scores answer NaN and infinity: the router is there to refuse them
        model, body = "ovr", not_a_number(rng)
    headers = {"Content-Type": rng.choice(["application/json", "text/plain", "application/octet-stream", ""])}
    return Request(f"/v2/models/{model}/infer", body, headers)


def binary(rng: random.Random, model: str) -> Request:
    """Return one in the binary form whose sizes do not fit."""
    request = good()
    del request["inputs"][0]["data"]
    raw = np.full(2 * D, 0.1, np.float32).tobytes()
    request["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(request).encode()
    which = rng.randrange(5)
    length: Any = len(head)
    if which == 0:
        raw = raw[: rng.randrange(len(raw))]
    elif which == 1:
        length = rng.choice([-1, 0, len(head) - 1, len(head) + 5, 10**9, 2**64, "x", "", "1e3", "0x10"])
    elif which == 2:
        raw = rng.choice([np.float32("nan"), np.float32("inf")]).tobytes() * (2 * D)
        if model != "ovr":  # the scores take them: the router is there to refuse them
            raw = raw[:-4]
    elif which == 3:
        raw += rng.randbytes(rng.randint(1, 100))
    else:
        request["inputs"][0]["parameters"]["binary_data_size"] = rng.choice([0, 1, len(raw) - 4, len(raw) + 4, 2**40])
        head = json.dumps(request).encode()
        length = len(head)
    headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
    return Request(f"/v2/models/{model}/infer", head + raw, headers)


def packed(rng: random.Random, model: str) -> Request:
    """Return one that says that it is compressed, and is not, or is cut."""
    body = gzip.compress(json.dumps(good()).encode())
    wrong = rng.choice([json.dumps(good()).encode(), body[: rng.randrange(10, len(body) // 2)], rng.randbytes(50), b"", body[::-1]])
    return Request(f"/v2/models/{model}/infer", wrong, {"Content-Encoding": rng.choice(["gzip", "deflate"])})


def wrong_place(rng: random.Random, model: str) -> Request:
    """Return one to what is not there."""
    name = rng.choice(["none", "OVR", "ovr ", "..", "%2e%2e%2f", "ovr/../ovr", "o" * 5000, "%ff%fe", "ovr%2Finfer", "ovr;x"])
    version = rng.choice(
        ["", "/versions/0", "/versions/-1", "/versions/99", "/versions/x", "/versions/", "/versions/1e3", "/versions/2**70"]
    )
    if rng.random() < 0.5:
        name, version = (
            model,
            rng.choice(["/versions/0", "/versions/-1", "/versions/99", "/versions/x", "/versions/99999999999999999999"]),
        )
    return Request(f"/v2/models/{name}{version}/infer".replace(" ", "%20"), json.dumps(good()).encode(), {})


def wrong_method(rng: random.Random, model: str) -> Request:
    method, path = rng.choice(
        [
            ("GET", f"/v2/models/{model}/infer"),
            ("PUT", f"/v2/models/{model}/infer"),
            ("DELETE", f"/v2/models/{model}"),
            ("PATCH", "/v2"),
            ("POST", "/v2/health/live/x"),
            ("GET", "/v3/models"),
            ("GET", "/"),
            ("POST", "/"),
            ("GET", "/v2/models/" + "a/" * 200),
            ("OPTIONS", "/v2/models"),
        ]
    )
    return Request(path, b"", {}, method)


HTTP_KINDS: dict[str, Callable[[random.Random, str], Request]] = {
    "body": to_a_model,
    "binary": binary,
    "packed": packed,
    "place": wrong_place,
    "method": wrong_method,
}


# gRPC ----------------------------------------------------------------------------------------------------------------------------


def good_message(model: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[2, D])
    request.raw_input_contents.append(np.full(2 * D, 0.1, np.float32).tobytes())
    request.outputs.add(name="prob")
    return request


def wrong_message(rng: random.Random, model: str) -> bytes:
    """Return one with a field that cannot be; Triton passes over contents in excess and all that follows a zero byte in a name."""
    request = good_message(model)
    tensor = request.inputs[0]
    which = rng.randrange(10)
    if which == 0:
        del tensor.shape[:]
        tensor.shape.extend(rng.choice([[], [2], [-1, D], [0, D], [2**62, D], [2, D, 1], [2, D + 1], [-(2**63), D]]))
    elif which == 1:
        tensor.datatype = rng.choice(["FP64", "INT32", "BYTES", "fp32", "", "X" * 1000])
    elif which == 2:
        tensor.name = rng.choice(["y", "", "n" * 100_000])
    elif which == 3:
        request.raw_input_contents[0] = request.raw_input_contents[0][: rng.randrange(8 * D - 1)]
    elif which == 4:
        del request.raw_input_contents[:]
        if rng.random() < 0.5:
            tensor.contents.fp32_contents.extend([0.1] * rng.choice([1, 2 * D - 1, 2 * D + 1]))
    elif which == 5:
        tensor.contents.fp32_contents.extend([0.1] * (2 * D))  # both
    elif which == 6:
        request.model_name = rng.choice(["", "none", "../ovr", "o" * 10_000])
    elif which == 7:
        request.model_version = rng.choice(["0", "-1", "99", "x", "9" * 40])
    elif which == 8:
        request.outputs[0].name = rng.choice(["", "none", "x", "o" * 10_000])
    else:
        again = request.inputs.add()
        again.CopyFrom(tensor)
        if rng.random() < 0.5:
            again.name = "z"
            request.raw_input_contents.append(request.raw_input_contents[0])
    data: bytes = request.SerializeToString()
    return data


def wrong_parameters(rng: random.Random, model: str) -> bytes:
    request = good_message(model)
    tensor = request.inputs[0]
    del request.raw_input_contents[:]
    tensor.parameters["shared_memory_region"].string_param = rng.choice(["none", "", "../x", "/dev/shm"])
    tensor.parameters["shared_memory_byte_size"].int64_param = rng.choice([0, -1, 8 * D, 2**62])
    data: bytes = request.SerializeToString()
    return data


def not_finite(rng: random.Random, model: str) -> bytes:
    request = good_message("ovr")
    array = np.full(2 * D, 0.1, np.float32)
    array[rng.randrange(2 * D)] = rng.choice([np.nan, np.inf, -np.inf])
    request.raw_input_contents[0] = array.tobytes()
    data: bytes = request.SerializeToString()
    return data


GRPC_KINDS: dict[str, Callable[[random.Random, str], bytes]] = {
    "message": wrong_message,
    "shared memory": wrong_parameters,
    "not finite": not_finite,
}
