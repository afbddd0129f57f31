"""Wrong requests that only the router can refuse: parameters, and rows of texts or cells, which are sent as bytes.

Knows no server. Each kind is a generator, as in `benchmarks.fuzz_requests`. Where a value is `bytes`, it is sent as it is, whatever
JSON or protobuf would write.
"""

import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from benchmarks.fuzz_requests import Request, good, good_message
from ovr.core.cohorts import CohortCalibrations
from ovr.input.columns import CategoryColumn, DateColumn, NumericColumn
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText

HttpKind = Callable[[random.Random, str], Request]
GrpcKind = Callable[[random.Random, str], bytes]

PATH = "/v2/models/ovr/infer"
HERE = "@"  # stands for a byte in a text of protobuf, which takes UTF-8 only
NOT_UTF8 = (b"\xff", b"caf\xe9", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"a\x80b")

# Rows -----------------------------------------------------------------------------------------------------------------------

TEXTS = HashedText(num_tokens=256, max_tokens=16)
GOOD_TEXTS = ["Where is my card?", "naïve café 猫"]

CELLS = TableEncoder(
    (
        NumericColumn("n", 5.0, 0.0, 1.0, 4.0, 6.0, flag=False, missing="error", out_of_range="error"),
        CategoryColumn("c", ("red", "blue"), (), False, False, missing="error", unknown="error"),
        DateColumn("day", ("year",), 1.6e9, 0.0, 1e-9, 1.5e9, 1.7e9, flag=False, missing="error", out_of_range="error"),
    )
)
GOOD_CELLS = [{"n": 4.5, "c": "red", "day": "2020-09-13"}, {"n": 5, "c": "blue", "day": "2021-01-02T03:04:05"}]


NO_ROWS = (
    *(b"", b" ", b"x", b"{", b"{}}", b"[]", b"7", b"null", b'"x"', b"true", b"{}"),
    *(b'{"n": 5.0,}', b"\xef\xbb\xbf{}", b"{'n': 5}"),
)


def cohorts_of(num_heads: int) -> CohortCalibrations:
    """Return a calibration a head and cohort, which rows name in a column of their own, or requests as a parameter."""

    def table(value: Any) -> tuple[tuple[Any, ...], ...]:
        return ((value,) * num_heads,) * 2

    return CohortCalibrations("sex", ("F", "M"), table(0.5), table(0.1), table("ok"), table(90), table(30))


def wrong_text(rng: random.Random) -> bytes:
    """Return what is no text."""
    return rng.choice([b"", b"Where is ", "猫 ".encode()]) + rng.choice(NOT_UTF8) + rng.choice([b"", b" my card?"])


def wrong_cells(rng: random.Random) -> bytes:
    """Return what is no row of `CELLS`."""
    row: dict[str, Any] = dict(rng.choice(GOOD_CELLS))
    which = rng.randrange(4)
    if which == 0:
        deep = [b"[" * rng.randint(1, 20_000), b'{"n":' * rng.randint(1, 5_000)]
        return rng.choice([*NO_ROWS, *deep])
    if which == 1:
        if rng.random() < 0.5:
            del row[rng.choice(list(row))]
        else:
            row[rng.choice(["", "N", "n ", "m" * 5000, "\ud800", "../n", "sex "])] = 1
        return json.dumps(row).encode()
    if which == 2:
        return json.dumps(row).encode()[: rng.randint(1, 12)] + rng.choice(NOT_UTF8) + b'": 1}'
    not_finite = [float("nan"), float("inf"), -float("inf")]
    anything: list[Any] = [None, "", "x", True, False, [], {}, [5], {"n": 5}, 10**400, -1e300, *not_finite]
    own: dict[str, list[Any]] = {
        "n": [3, 7, "1e999", "5_0", "5,0", "0x5", "9" * 5000, "\ud800"],
        "c": ["green", "RED", 5, 0.5, "r" * 5000, "\ud800", "red\u0000", ["red"]],
        "day": ["2020-13-45", "9999-12-31", "0001-01-01", "2020-09-13T99:00", 20200913, "13.09.2020", "\ud800", ["2020-09-13"]],
    }
    name = rng.choice(list(own))
    row[name] = rng.choice([*anything, *own[name]])
    return json.dumps(row).encode()


def framed(contents: Sequence[bytes]) -> bytes:
    """Return texts as the protocol has them in its binary form: the length of each before it."""
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


def badly_framed(rng: random.Random, contents: Sequence[bytes]) -> bytes:
    right = framed(contents)
    which = rng.randrange(5)
    if which == 0:
        return right[: rng.randrange(len(right))]
    if which == 1:
        return struct.pack("<I", rng.choice([len(contents[0]) + 1, len(right), 2**31, 2**32 - 1])) + right[4:]
    if which == 2:
        return framed(contents[:1])
    if which == 3:
        return framed([*contents, contents[0]])
    return right + rng.randbytes(rng.randint(1, 3))


def rows_request(name: str, contents: Sequence[bytes]) -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": [2, 1], "datatype": "BYTES", "data": list(contents)}], "outputs": [{"name": "prob"}]}


def binary_request(name: str, data: bytes, size: Any = None) -> Request:
    """Return a request in the binary form; by default of the size that it says."""
    request = rows_request(name, [])
    del request["inputs"][0]["data"]
    request["inputs"][0]["parameters"] = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps(request).encode()
    return Request(PATH, head + data, {"Inference-Header-Content-Length": str(len(head))})


def rows_message(name: str, data: bytes | None) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="ovr")
    request.inputs.add(name=name, datatype="BYTES", shape=[2, 1])
    request.outputs.add(name="prob")
    if data is not None:
        request.raw_input_contents.append(data)
    return request


def wrong_rows(rng: random.Random, good_rows: Sequence[bytes], wrong: Callable[[random.Random], bytes]) -> list[bytes]:
    """Return rows of which at least one is wrong."""
    rows = [rng.choice(good_rows), wrong(rng)] if rng.random() < 0.7 else [wrong(rng), wrong(rng)]
    rng.shuffle(rows)
    return rows


def http_rows(rng: random.Random, _: str, *, name: str, rows: Sequence[bytes], wrong: Callable[[random.Random], bytes]) -> Request:
    contents = wrong_rows(rng, rows, wrong)
    if rng.random() < 0.5:
        return binary_request(name, framed(contents))
    return Request(PATH, to_json(rows_request(name, contents)), {})


def http_framing(rng: random.Random, _: str, *, name: str, rows: Sequence[bytes]) -> Request:
    data = badly_framed(rng, rows)
    if rng.random() < 0.6:
        sizes = [None, None, None, 0, 1, len(data) + 1, max(0, len(data) - 5), 2**40, -1, "8"]
        return binary_request(name, data, rng.choice(sizes))
    request = rows_request(name, rows)
    tensor = request["inputs"][0]
    junk: list[Any] = [[], [1, 2], [None, None], [True, False], [["a"], 7], [{}, {}], "ab", None, {}, 7]
    which = rng.randrange(3)
    if which == 0:
        tensor["data"] = rng.choice([*junk, rows[:1], [*rows, b"x"]])
    elif which == 1:
        tensor["shape"] = rng.choice([[], [2], [1, 2], [0, 1], [-1, 1], [2**62, 1], [2, 1, 1], [2, 2], ["2", 1], None])
    else:
        tensor["datatype"] = rng.choice(["FP32", "INT64", "UINT8", "BOOL", "bytes", "STRING", "", 7, None])
    return Request(PATH, to_json(request), {})


def grpc_rows(rng: random.Random, _: str, *, name: str, rows: Sequence[bytes], wrong: Callable[[random.Random], bytes]) -> bytes:
    contents = wrong_rows(rng, rows, wrong)
    request = rows_message(name, framed(contents) if rng.random() < 0.5 else None)
    if not request.raw_input_contents:
        request.inputs[0].contents.bytes_contents.extend(contents)
    data: bytes = request.SerializeToString()
    return data


def grpc_framing(rng: random.Random, _: str, *, name: str, rows: Sequence[bytes]) -> bytes:
    which = rng.randrange(4)
    request = rows_message(name, badly_framed(rng, rows) if which == 0 else framed(rows) if which > 1 else None)
    tensor = request.inputs[0]
    if which == 1:
        tensor.contents.bytes_contents.extend(rng.choice([[], rows[:1], [*rows, b"x"]]))
        if rng.random() < 0.3:
            tensor.contents.fp32_contents.extend([0.1, 0.2])
    elif which == 2:
        del tensor.shape[:]
        tensor.shape.extend(rng.choice([[], [2], [1, 2], [0, 1], [-1, 1], [2**62, 1], [2, 1, 1], [2, 2]]))
    elif which == 3:
        tensor.datatype = rng.choice(["FP32", "INT64", "UINT8", "BOOL", "bytes", "STRING", ""])
    data: bytes = request.SerializeToString()
    return data


# Parameters -----------------------------------------------------------------------------------------------------------------

RIGHT = {"top_k": 2, "classes": '["class 1", "class 0"]', "fill": -1}
NUMBERS: dict[str, list[Any]] = {
    "top_k": [0, -1, 1.5, -(2**63), 1e300, True, False],
    "threshold": [-1, 2, 1.5, -0.001, 2**62, 1e300, True],
    "fill": [0, 1, 0.5, -1e10, 2**62, True],
    "classes": [0, 7, -1, 0.5, True],
    "cohort": [0, 1, -7, 2.5, True],
}
TEXT_VALUES = [  # none of them is a value that any parameter takes; a cohort may be any text
    *("", " ", "\0", "null", "nan", "NaN", "true", "{}", "[]", "[[", "[" * 10_000, "x" * 5000, '"', "'class 0'", "é", "\U0001f600"),
    *("1e999", "-1e999", "9" * 5000, "0x1", "1_0", "٣", "none", "class 0,", "class 0,none", "class 0,class 0", ",", "\ufffe"),
    *('["class 0"', '["none"]', '["class 0", "class 0"]', '["class 0", 1]', "[null]", '["\\ud800"]', '[["class 0"]]', "[1e999]"),
    *('{"class 0": 2}', '{"class 0": NaN}', '{"class 0": null}', '{"none": 0.5}', '{"class 0": }', '{"class 0": "0.5"}'),
    '{"\\ud800": 0.5}',
]
STRUCTURES: list[Any] = [None, [], {}, [1], {"a": 1}, ["class 0"], {"class 0": 0.5}]  # which the protocol does not have
UNKNOWN = ("topk", "TOP_K", "top_k ", "class", "x" * 5000, "é", "triton_x", "__proto__", "../x", "threshold[0]")


def wrong_parameter(rng: random.Random, *, cohorts: bool) -> tuple[str, Any]:
    """Return a parameter that is wrong, and a value that a message of gRPC can hold.

    Args:
        cohorts: whether the model has them, so that the parameter may be any text.
    """
    name = rng.choice([*NUMBERS, "unknown"])
    if name == "unknown":
        return rng.choice(UNKNOWN), rng.choice([1, -1.5, True, "x", *NOT_UTF8])
    texts = [] if cohorts and name == "cohort" else [rng.choice(TEXT_VALUES), rng.choice(NOT_UTF8)]
    return name, rng.choice([rng.choice(NUMBERS[name]), *texts])


def with_wrong_parameter(rng: random.Random, *, cohorts: bool) -> dict[str, Any]:
    """Return parameters of which one is wrong."""
    name, value = wrong_parameter(rng, cohorts=cohorts)
    others = {other: RIGHT[other] for other in RIGHT if other != name and rng.random() < 0.3}
    return dict(rng.sample(items := [*others.items(), (name, value)], len(items)))


def http_parameters(rng: random.Random, _: str, *, request: Callable[[], dict[str, Any]], cohorts: bool) -> Request:
    asked = request()
    asked["parameters"] = with_wrong_parameter(rng, cohorts=cohorts)
    if rng.random() < 0.1:
        asked["parameters"][rng.choice(list(NUMBERS))] = rng.choice(STRUCTURES)
    body = to_json(asked)
    if rng.random() < 0.05:
        body = body.replace(b'"parameters": {', b'"parameters": {"' + rng.choice(NOT_UTF8) + b'": 1, ')
    return Request(PATH, body, {})


def grpc_parameters(rng: random.Random, _: str, *, request: Callable[[], pb.ModelInferRequest], cohorts: bool) -> bytes:
    asked, raw = request(), b""
    for name, value in with_wrong_parameter(rng, cohorts=cohorts).items():
        given = asked.parameters[name]
        if isinstance(value, bytes):
            given.string_param, raw = HERE * len(value), value
        elif isinstance(value, str):
            given.string_param = value
        elif isinstance(value, bool):
            given.bool_param = value
        elif isinstance(value, float):
            given.double_param = value
        else:
            given.int64_param = value
    data: bytes = asked.SerializeToString()
    return data.replace(HERE.encode() * len(raw), raw) if raw else data


def to_json(request: Mapping[str, Any]) -> bytes:
    """Return JSON in which a value of bytes stands as it is, within quotes."""
    raws: list[bytes] = []

    def keep(value: bytes) -> str:
        raws.append(value.replace(b"\\", b"\\\\").replace(b'"', b'\\"'))
        return f"<{len(raws) - 1}>"

    body = json.dumps(request, default=keep).encode()
    for number, raw in enumerate(raws):
        body = body.replace(f'"<{number}>"'.encode(), b'"' + raw + b'"')
    return body


# What is sent to which router -----------------------------------------------------------------------------------------------


def number_kinds() -> tuple[dict[str, HttpKind], dict[str, GrpcKind]]:
    """Return the kinds over HTTP and gRPC, to a router of numbers."""
    return (
        {"parameters": partial(http_parameters, request=good, cohorts=False)},
        {"parameters": partial(grpc_parameters, request=partial(good_message, "ovr"), cohorts=False)},
    )


def byte_kinds(
    name: str, rows: Sequence[bytes], wrong: Callable[[random.Random], bytes], *, cohorts: bool
) -> tuple[dict[str, HttpKind], dict[str, GrpcKind]]:
    """Return the kinds over HTTP and gRPC, to a router whose input `name` takes rows as bytes; it must refuse those of `wrong`."""
    own: dict[str, Any] = {"name": name, "rows": rows}
    return (
        {
            "rows": partial(http_rows, **own, wrong=wrong),
            "framing": partial(http_framing, **own),
            "parameters": partial(http_parameters, request=partial(rows_request, name, rows), cohorts=cohorts),
        },
        {
            "rows": partial(grpc_rows, **own, wrong=wrong),
            "framing": partial(grpc_framing, **own),
            "parameters": partial(grpc_parameters, request=partial(rows_message, name, framed(rows)), cohorts=cohorts),
        },
    )
