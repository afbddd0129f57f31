"""A checked model for other runtimes: an older opset, an older IR version, ONNX Runtime's own format. Knows nothing of heads."""

import re
import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnx import helper, version_converter

from ovr.errors import ArtifactError, ConfigError
from ovr.export.graph import IR_VERSION, OPSET
from ovr.runtime.onnx_versions import release_for

MIN_OPSET = 7  # the least that onnx converts to
MIN_IR_VERSION = 4  # from there on weights are no inputs
FAILURES = (RuntimeError, version_converter.ConvertError)  # of onnx's converter


def check_versions(opset: int | None, ir_version: int | None) -> None:
    """Raise ConfigError unless these are versions that a model can be brought to; None leaves the choice."""
    for name, value, least, most in (("opset", opset, MIN_OPSET, OPSET), ("ir_version", ir_version, MIN_IR_VERSION, IR_VERSION)):
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} to {most}, which models of ovr have")


def with_versions(model: onnx.ModelProto, opset: int | None, ir_version: int | None) -> onnx.ModelProto:
    """Return the model in an opset and an IR version; by default those that it has, and the IR version that came with the opset.

    The IR version of an opset that is given is taken also where the model has that opset already, so that older runtimes open it.

    Raises:
        ConfigError: the model uses an operator that onnx does not bring to this opset; the least that works is named.
    """
    made, asked = model, asked_ir_version(opset, ir_version)
    if opset is not None and opset != opset_of(model):
        try:
            made = version_converter.convert_version(model, opset)
        except FAILURES as error:
            least = next((number for number in range(opset + 1, OPSET) if _converts(model, number)), OPSET)
            found = re.search(r"No Adapter .*|[^:]*$", str(error).strip())
            why = found[0].strip() if found else error
            raise ConfigError(
                f"this model cannot be brought to opset {opset} ({why}); it needs opset {least} or a later one, and with it "
                f"onnxruntime {release_for(least, _ir_version_of(least) if ir_version is None else ir_version)} or a later one"
            ) from None
        # The converter loses nothing that it knows; metadata are put back where it does not know them.
        del made.metadata_props[:]
        made.metadata_props.extend(model.metadata_props)
    if asked is not None:
        if made is model:
            made = onnx.ModelProto()
            made.CopyFrom(model)
        made.ir_version = asked
    return made


def asked_ir_version(opset: int | None, ir_version: int | None) -> int | None:
    """Return the IR version that a file is to have: the one given, or else the one that came with the opset given, if any was."""
    return ir_version if ir_version is not None or opset is None else min(_ir_version_of(opset), IR_VERSION)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of the default domain."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def ort_file(data: bytes) -> bytes:
    """Return a serialised model in ONNX Runtime's own format, which its small builds for phones read.

    Optimised as far as every processor allows, since such builds do not optimise. Versions of ONNX Runtime before the one here may
    not read it.

    Raises:
        ArtifactError: ONNX Runtime cannot write it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.ort"
        options.optimized_model_filepath = str(file)
        try:
            onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            return file.read_bytes()
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ArtifactError(f"ONNX Runtime cannot write this model in its own format: {str(error).strip()}") from None


def _converts(model: onnx.ModelProto, opset: int) -> bool:
    try:
        version_converter.convert_version(model, opset)
    except FAILURES:
        return False
    return True


def _ir_version_of(opset: int) -> int:
    """Return the IR version of the first release of onnx that had this opset."""
    return max(MIN_IR_VERSION, min(int(row[1]) for row in helper.VERSION_TABLE if row[2] == opset))
