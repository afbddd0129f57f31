import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ovr.backbone import pretrained
from ovr.backbone.transformer import Transformer
from ovr.core.onnx_file import GRAPH_OPS
from ovr.core.schema import InputSchema
from ovr.errors import ConfigError
from ovr.export.backbone import backbone_model, backbone_weights
from ovr.export.check import check_structure, run
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel
from tests.encoders import save_encoder

pytest.importorskip("transformers")
LENGTH = 12
SETTINGS = {
    "pooling": "mean",
    "layers": [-1],
    "frozen": True,
    "trained_layers": "all",
    "lora_rank": None,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_targets": "all-linear",
    "gradient_checkpointing": False,
}
LORA = {"frozen": False, "lora_rank": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("bert"))


def build(folder, input_shape=(LENGTH, 2), seed=0, **changes):
    torch.manual_seed(seed)
    return Transformer(input_shape, path=str(folder), **{**SETTINGS, **changes})


def rows(lengths=(5, 12, 1, 3), seed=0):
    """Rows of the given numbers of tokens, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(len(lengths), LENGTH, 2)
    for row, length in enumerate(lengths):
        x[row, :length, 0] = torch.randint(1, 64, (length,), generator=generator).float()
        x[row, :length, 1] = 1
    return x


def network(backbone):
    return OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), backbone, Linear(backbone.num_features, num_heads=2))


def noisy(model, seed=1):
    """Move what is trained, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def hidden_states(folder, x_L2, length):
    """What transformers itself gives for one row without padding."""
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return encoder(input_ids=x_L2[None, :length, 0].long(), output_hidden_states=True).hidden_states


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("mean", lambda h: h.mean(0)), ("cls", lambda h: h[0]), ("max", lambda h: h.amax(0))],
)
def test_features_are_the_pooled_vectors_of_the_encoder(folder, pooling, pool):
    backbone, x = build(folder, pooling=pooling, layers=[-1, 1]), rows()
    assert backbone.num_features == 32
    with torch.no_grad():
        z_BD = backbone(x)
    for row, length in enumerate((5, 12, 1, 3)):
        states = hidden_states(folder, x[row], length)
        expected = torch.cat([pool(states[-1][0]), pool(states[1][0])])
        torch.testing.assert_close(z_BD[row], expected, atol=1e-5, rtol=1e-5)


def test_a_row_depends_neither_on_padding_nor_on_the_rows_beside_it(folder):
    backbone, x = build(folder), rows([5, 12, 1, 3] * 300)
    with torch.no_grad():
        together = backbone(x)
        torch.testing.assert_close(torch.cat([backbone(x[:3]), backbone(x[3:])]), together, atol=2e-6, rtol=0)
        padding = x[..., 1:] == 0
        torch.testing.assert_close(backbone(torch.where(padding, torch.tensor([9.0, 0.0]), x)), together, atol=2e-6, rtol=0)
        torch.testing.assert_close(backbone._features(x[:8]), together[:8], atol=2e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_row_without_a_token_gives_zeros(folder, pooling):
    backbone, x = build(folder, pooling=pooling), rows([0, 4])
    with torch.no_grad():
        z_BD, at_full_length = backbone(x), backbone._features(x)
    assert z_BD[0].tolist() == at_full_length[0].tolist() == [0.0] * 16
    assert z_BD[1].isfinite().all()
    model = network(backbone)
    got = run(backbone_model(model, InputSchema((LENGTH, 2))).SerializeToString(), x.numpy())
    np.testing.assert_allclose(got, z_BD.numpy(), atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("changes", [{}, {"layers": [0, 2], "pooling": "max"}])
def test_the_onnx_model_gives_torchs_features_at_any_batch_size(tmp_path, model_type, changes):
    names = {"distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    more = names.get(model_type, {}) | (special if model_type in ("roberta", "modernbert") else {})
    model = network(build(save_encoder(tmp_path, model_type=model_type, **more), **changes)).eval()
    x = rows([5, 12, 1, 3, 0, 7, 12])
    data = check_structure(backbone_model(model, InputSchema((LENGTH, 2))), allowed_ops=GRAPH_OPS, what="backbone")
    with torch.no_grad():
        expected = model.features(x).numpy()
    for batch_size in (1, 2, 7):
        np.testing.assert_allclose(run(data, x.numpy(), batch_size=batch_size), expected, atol=1e-5)


def test_a_frozen_encoder_is_never_trained_and_never_drops_out(folder):
    backbone = build(folder).train()
    assert backbone.pretrained
    assert backbone.frozen
    assert not backbone.encoder.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert torch.equal(backbone(rows()), backbone(rows()))


def test_a_fine_tuned_encoder_is_trained_in_every_weight(folder):
    backbone = build(folder, frozen=False).train()
    backbone(rows()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in backbone.parameters())
    assert not torch.equal(backbone(rows()), backbone(rows())), "dropout"


def test_of_the_last_layers_alone_only_those_are_trained(folder):
    backbone = build(folder, frozen=False, trained_layers=1)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".layer.1." in name for name in trained)


def test_gradient_checkpointing_gives_the_same_gradients(folder):
    grads = []
    for value in (False, True):
        backbone = build(folder, frozen=False, gradient_checkpointing=value)
        torch.manual_seed(0)
        backbone.train()(rows()).square().sum().backward()
        grads.append([parameter.grad for parameter in backbone.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_adapters_start_as_no_change_and_are_all_that_is_trained(folder):
    pytest.importorskip("peft")
    backbone, plain = build(folder, **LORA).eval(), build(folder)
    with torch.no_grad():
        torch.testing.assert_close(backbone(rows()), plain(rows()))
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 6 * 2
    assert all("lora_" in name for name in trained)


def test_the_export_has_adapters_merged_and_leaves_the_model_as_it_was(folder):
    pytest.importorskip("peft")
    model = noisy(network(build(folder, **LORA))).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = rows()
    with torch.no_grad():
        expected = model.features(x).numpy()
        assert np.abs(expected - network(build(folder)).features(x).numpy()).max() > 0.01
    data = backbone_model(model, InputSchema((LENGTH, 2))).SerializeToString()
    np.testing.assert_allclose(run(data, x.numpy()), expected, atol=1e-5)
    assert b"lora" not in data
    assert b"lora" not in backbone_weights(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"frozen": False}, LORA], ids=["frozen", "fine-tuned", "adapters"])
def test_merged_weights_can_be_gone_on_with(folder, changes):
    """In a model of any of the three kinds, with adapters that change nothing as yet."""
    import io

    pytest.importorskip("peft")
    model, other = noisy(network(build(folder, **LORA))).eval(), noisy(network(build(folder, seed=2, **changes))).eval()
    with np.load(io.BytesIO(backbone_weights(model)), allow_pickle=False) as arrays:
        missing = other.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays}, strict=False)
    assert all(name.startswith("head.") for name in missing.missing_keys)
    assert missing.unexpected_keys == []
    x = rows()
    with torch.no_grad():
        torch.testing.assert_close(other.features(x), model.features(x), atol=1e-5, rtol=1e-5)


def test_adapters_are_restored_from_a_checkpoint(folder):
    pytest.importorskip("peft")
    model, other = noisy(network(build(folder, **LORA))).eval(), network(build(folder, seed=2, **LORA)).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(rows()), model(rows()))


def test_the_seed_decides_what_is_drawn(folder):
    pytest.importorskip("peft")
    one, other = build(folder, **LORA).state_dict(), build(folder, **LORA).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_longest_row_that_is_taken_can_be_encoded(tmp_path):
    """RoBERTa's positions begin behind the number of its padding token."""
    special = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    folder = save_encoder(tmp_path, model_type="roberta", **special)
    x = torch.ones(1, 38, 2)
    x[..., 0] = 5
    assert build(folder, input_shape=(38, 2))(x).isfinite().all()
    with pytest.raises(ConfigError, match=r"rows have 39 tokens, and the encoder .* takes at most 38"):
        build(folder, input_shape=(39, 2))


def test_a_token_that_the_encoder_does_not_know_is_refused(folder):
    x = rows()
    x[1, 2, 0] = 64
    for backbone in (build(folder).eval(), build(folder, frozen=False).train()):
        with pytest.raises(
            ConfigError, match=r"a row has token 64, and the encoder knows 64 tokens: the tokenizer .* is not the one"
        ):
            backbone(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (1, 8, 8)}, r"needs rows of tokens \(L, 2\), got shape \(1, 8, 8\)"),
        ({"input_shape": (41, 2)}, "rows have 41 tokens, and the encoder .* takes at most 40; lower max_tokens"),
        ({"pooling": "sum"}, "backbone.pooling is 'sum'; expected one of mean, cls, max"),
        ({"layers": []}, r"backbone.layers must be numbers from -3 to 2, got \[\]"),
        ({"layers": [3]}, r"backbone.layers must be numbers from -3 to 2, got \[3\]"),
        ({"frozen": "yes"}, "backbone.frozen must be true or false, got 'yes'"),
        ({"lora_rank": 4}, "backbone.frozen=true trains nothing; add backbone.frozen=false"),
        ({"gradient_checkpointing": True}, "backbone.frozen=true trains nothing"),
        ({"frozen": False, "trained_layers": 3}, "backbone.trained_layers must be all or a number from 1 to 2, got 3"),
        ({"frozen": False, "trained_layers": 1, "lora_rank": 2}, "exclude each other"),
        ({"frozen": False, "lora_rank": 0}, "backbone.lora_rank must be a whole number of at least 1"),
        ({**LORA, "lora_dropout": 1}, "lora_dropout from 0 to below 1"),
        ({**LORA, "lora_targets": ["nothing"]}, r"backbone.lora_targets=\['nothing'\]: .*not found"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(folder, changes, message):
    if "lora_targets" in changes:
        pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=message):
        build(folder, **changes)


def test_what_is_no_encoder_is_refused(tmp_path, folder):
    def refused(message):
        with pytest.raises(ConfigError, match=message):
            build(tmp_path)

    refused("cannot be loaded: .*; expected a folder with config.json and model.safetensors")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-50])
    refused("cannot be loaded")
    (tmp_path / "model.safetensors").unlink()
    refused("cannot be loaded")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused(r"lacks 16 weights of BertModel \(.*\): they would be drawn at random")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    refused("it is t5, with a decoder; expected an encoder such as BERT")


def test_code_of_the_model_is_not_run(tmp_path, folder):
    config = json.loads((folder / "config.json").read_text())
    config = {**config, "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build(tmp_path)


def test_pickled_weights_are_read_as_tensors_alone(tmp_path, folder):
    from safetensors.torch import load_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        assert torch.equal(build(tmp_path)(rows()), build(folder)(rows()))
    torch.save({"embeddings": OpensAFile(tmp_path / "opened")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build(tmp_path)
    assert not (tmp_path / "opened").exists()


class OpensAFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(("package", "changes"), [("transformers", {}), ("peft", LORA)])
def test_a_missing_package_is_named(folder, monkeypatch, package, changes):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs the package {package}, which is not installed: pip install"):
        build(folder, **changes)


def test_nothing_is_shown_while_it_loads(folder, capfd):
    build(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("names", "count"), [((), "no"), (("parts.a.", "parts.b."), "2")])
def test_a_bundle_of_another_number_of_encoders_is_refused(tmp_path, monkeypatch, names, count):
    file = tmp_path / pretrained.BACKBONE_WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **{"backbone.x": np.zeros(1)}, **{f"backbone.{name}config_json": np.zeros(1, np.uint8) for name in names})
    monkeypatch.setattr(pretrained, "open_bundle", lambda folder: SimpleNamespace(path=folder))
    with pytest.raises(ConfigError, match=f"is a bundle with {count} encoders; expected one"):
        pretrained.load_encoder(str(tmp_path))
