"""Requests over gRPC, many at a time on one connection: from threads, or on an event loop."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as services

from ovr.runtime.remote.address import Address, Security
from ovr.runtime.remote.failures import no_triton, of_code
from ovr.runtime.remote.http import closed
from ovr.runtime.remote.retry import Failure
from ovr.runtime.remote.v2 import Answer, Request, array_of

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A connection of its own: else all channels of a process to one server share one, and with it one limit of its window.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that is back is found at the next attempt: by default a lost one is not asked for 1 s, and 2 minutes in the end.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),  # we do
)
NOTHING: Mapping[str, str] = MappingProxyType({})
TELL = "tell the model's configuration"


class Grpc:
    """A connection to one server. Safe for threads."""

    def __init__(self, address: Address, security: Security) -> None:
        """Prepare it; nothing is sent yet."""
        self._address = address
        self._metadata = tuple(security.headers.items())
        if address.is_secure:
            self._channel = grpc.secure_channel(address.host_port, security.credentials(), options=OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.host_port, options=OPTIONS)
        self._stub = services.GRPCInferenceServiceStub(self._channel)
        self._closed = False

    def infer(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer, or raise Failure."""
        message = to_grpc(request)
        try:
            answer = self._stub.ModelInfer(message, timeout=timeout_s, metadata=(*self._metadata, *request.headers.items()))
        except (grpc.RpcError, ValueError) as error:
            raise self._failure(error, request.what, timeout_s) from None
        return _answer(self._address, answer)

    def config(self, model: str, timeout_s: float) -> tuple[dict[str, str], int]:
        """Return a model's parameters and largest batch, or raise Failure."""
        try:
            answer = self._stub.ModelConfig(pb.ModelConfigRequest(name=model), timeout=timeout_s, metadata=self._metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._failure(error, TELL, timeout_s) from None
        return _config(answer)

    def close(self) -> None:
        """Close the connection; requests that wait for an answer fail."""
        self._closed = True
        self._channel.close()

    def _failure(self, error: Any, what: str, timeout_s: float) -> Failure:
        if self._closed:
            return closed(self._address)
        if isinstance(error, ValueError):
            raise error
        return of_code(self._address, what, error.code().name, error.details() or "", timeout_s)


class AsyncGrpc:
    """A connection to one server, used on one event loop."""

    def __init__(self, address: Address, security: Security) -> None:
        """Prepare it; nothing is sent yet."""
        self._address = address
        self._metadata = tuple(security.headers.items())
        self._credentials = security.credentials() if address.is_secure else None
        self._channel: Any = None
        self._stub: Any = None
        self._closed = False

    async def infer(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer, or raise Failure."""
        message = to_grpc(request)
        answer = await self._call("ModelInfer", message, request.what, timeout_s, request.headers)
        return _answer(self._address, answer)

    async def config(self, model: str, timeout_s: float) -> tuple[dict[str, str], int]:
        """Return a model's parameters and largest batch, or raise Failure."""
        return _config(await self._call("ModelConfig", pb.ModelConfigRequest(name=model), TELL, timeout_s))

    async def close(self) -> None:
        """Close the connection; requests that wait for an answer fail."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def _call(self, method: str, message: Any, what: str, timeout_s: float, headers: Mapping[str, str] = NOTHING) -> Any:
        if self._closed:
            raise closed(self._address)
        if self._stub is None:  # wants to be made on the loop that it is used on
            if self._credentials is not None:
                self._channel = grpc.aio.secure_channel(self._address.host_port, self._credentials, options=OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self._address.host_port, options=OPTIONS)
            self._stub = services.GRPCInferenceServiceStub(self._channel)
        try:
            return await getattr(self._stub, method)(message, timeout=timeout_s, metadata=(*self._metadata, *headers.items()))
        except grpc.aio.AioRpcError as error:
            if self._closed:
                raise closed(self._address) from None
            raise of_code(self._address, what, error.code().name, error.details() or "", timeout_s) from None
        except grpc.aio.UsageError:
            raise closed(self._address) from None
        except asyncio.CancelledError:  # of the task that waits, or as gRPC ends the calls of a channel that is closed
            if self._closed and not _is_cancelled():
                raise closed(self._address) from None
            raise


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled; Python 3.10 cannot tell."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0


def to_grpc(request: Request) -> Any:
    """Return the message `ModelInferRequest`."""
    message = pb.ModelInferRequest(model_name=request.model, id=request.id)
    for tensor in request.tensors:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        message.raw_input_contents.append(tensor.raw())
    for name in request.outputs:
        message.outputs.add(name=name)
    for name, value in request.parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param" if isinstance(value, int) else "double_param"
        setattr(message.parameters[name], kind, value)
    return message


def from_grpc(message: Any) -> Answer:
    """Return the answer in a message `ModelInferResponse`.

    Raises:
        ValueError: sizes that do not fit.
    """
    outputs = zip(message.outputs, message.raw_output_contents, strict=True)
    arrays = {output.name: array_of(output.datatype, output.shape, raw) for output, raw in outputs}
    return Answer(message.model_version, message.id, arrays)


def _answer(address: Address, message: Any) -> Answer:
    try:
        return from_grpc(message)
    except ValueError as error:
        raise no_triton(address, error) from None


def _config(message: Any) -> tuple[dict[str, str], int]:
    config = message.config
    return {key: value.string_value for key, value in config.parameters.items()}, config.max_batch_size
