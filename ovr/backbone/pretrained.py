"""Hugging Face encoders, loaded safely: no code of the model's own, safetensors before pickles, and of these only tensors.

Knows no rows. Needs the package transformers (extra `text`), imported when an encoder is loaded.
"""

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovr.core.bundle import BACKBONE_WEIGHTS, open_bundle
from ovr.errors import ArtifactError, ConfigError

CONFIG = "config_json"  # the buffer of a backbone that holds `config_buffer`
CONFIG_BYTES = 8192  # its size is a multiple, so that versions of transformers, which write other defaults, agree on its shape
NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "architectures", "id2label", "label2id", "dtype", "torch_dtype")


def load_encoder(path: str) -> Any:
    """Return the encoder in float32, without the pooling layers that some have for other tasks.

    Raises:
        ConfigError: it cannot be loaded, lacks weights, or is none.
    """
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise ConfigError(
            "backbone=transformer needs the package transformers, which is not installed: pip install 'ovr[text]'"
        ) from None
    folder = Path(path).expanduser()
    # Where a model is only measured (on torch's meta device), transformers could not load: this part is then made for real.
    with _quiet(transformers), torch.device("cpu"):
        if (folder / BACKBONE_WEIGHTS).is_file():
            encoder = _of_bundle(transformers, folder)
        else:
            encoder = _pretrained(transformers, path if not folder.exists() else str(folder))
    if encoder.config.is_encoder_decoder:
        raise ConfigError(f"{path} is a {type(encoder).__name__}, with a decoder; backbone=transformer takes encoders such as BERT")
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def _pretrained(transformers: Any, path: str) -> Any:
    """Load from a folder or the hub: no code of the model's own, and of pickled weights only tensors."""
    common = {"trust_remote_code": False, "dtype": torch.float32, "output_loading_info": True}
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ValueError(f"it is {config.model_type}, with a decoder; expected an encoder such as BERT")
        try:
            encoder, info = transformers.AutoModel.from_pretrained(path, config=config, use_safetensors=True, **common)
        except OSError:
            encoder, info = transformers.AutoModel.from_pretrained(
                path, config=config, use_safetensors=False, weights_only=True, **common
            )
    except Exception as error:  # transformers lets through what json, safetensors, pickle and its HTTP client raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"backbone.path={path} cannot be loaded: {reason}; expected a folder with config.json and model.safetensors, as "
            "AutoModel.save_pretrained writes it, the name of a model on the Hugging Face hub, or a bundle"
        ) from None
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ConfigError(
            f"backbone.path={path} lacks {len(missing)} weights of {type(encoder).__name__} ({', '.join(missing[:3])}, ...): "
            "they would be drawn at random"
        )
    return encoder


def _of_bundle(transformers: Any, folder: Path) -> Any:
    """Return the encoder of an `ovr` bundle whose backbone is one."""
    data = (open_bundle(folder).path / BACKBONE_WEIGHTS).read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        of_encoders = [name.removesuffix(CONFIG) for name in arrays.files if name.endswith(f".{CONFIG}")]
        if len(of_encoders) != 1:  # the backbone itself, or a part of backbone=joined
            raise ConfigError(f"backbone.path={folder} is a bundle with {len(of_encoders) or 'no'} encoders; expected one")
        settings = json.loads(arrays[of_encoders[0] + CONFIG].tobytes().rstrip(b"\0"))
        prefix = f"{of_encoders[0]}encoder."
        weights = {name.removeprefix(prefix): torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(prefix)}
    config = transformers.AutoConfig.for_model(**settings)
    encoder = transformers.AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"{folder}: the weights do not fit the encoder: {str(error).splitlines()[-1].strip()}") from None
    return encoder


def config_buffer(config: Any) -> Tensor:
    """Return the JSON of what makes the architecture, as bytes followed by zeros."""
    plain = {name: value for name, value in config.to_diff_dict().items() if name not in NOT_ARCHITECTURE}
    plain["model_type"] = config.model_type
    data = json.dumps(plain, sort_keys=True).encode()
    return torch.frombuffer(bytearray(data.ljust(-(-len(data) // CONFIG_BYTES) * CONFIG_BYTES, b"\0")), dtype=torch.uint8).clone()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and its reports of what it did not load off the user's screen."""
    settings = transformers.utils.logging
    level, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.set_verbosity(level)
        if bars:
            settings.enable_progress_bar()
