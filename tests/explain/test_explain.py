import re

import numpy as np
import pytest
import torch

from ovr.backbone.bag import Bag
from ovr.backbone.cnn import Cnn
from ovr.backbone.identity import Identity
from ovr.backbone.mlp import Mlp
from ovr.core.schema import InputSchema
from ovr.errors import ConfigError, InputError
from ovr.explain import attribute, parts
from ovr.explain.explain import MAX_WORDS, Explainer
from ovr.head.linear import Linear
from ovr.input.sparse import SparseRows
from ovr.input.table_fit import TableSettings, fit_table
from ovr.input.text import HashedText
from ovr.model import Normalizer, OvrModel

pytest.importorskip("captum")
GRADIENTS, OCCLUSION = "integrated_gradients", "occlusion"
HEADS = 3


def model_of(backbone, *, shift=(0.0,), scale=(1.0,), seed=0):
    torch.manual_seed(seed)
    head = Linear(backbone.num_features, num_heads=HEADS)
    with torch.no_grad():
        for parameter in [*backbone.parameters(), *head.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return OvrModel(Normalizer(torch.tensor(shift), torch.tensor(scale)), backbone, head).eval().requires_grad_(False)


def explainer(backbone, schema, encoder=None, reference=None, **settings):
    reference = np.zeros((1, *schema.shape), np.float32) if reference is None else reference
    return Explainer(model_of(backbone, **settings), schema, encoder, reference, num_heads=HEADS)


def logits(explainer, x):
    with torch.no_grad():
        return explainer.model(torch.as_tensor(np.asarray(x, np.float64))).numpy()


@pytest.mark.parametrize("method", [GRADIENTS, OCCLUSION])
def test_of_a_linear_model_a_column_adds_its_weight_times_its_distance_from_the_baseline(rng, method):
    reference = rng.normal(size=(9, 4)).astype(np.float32)
    schema = InputSchema((4,), ("a", "b", "c", "d"))
    made = explainer(Identity((4,)), schema, reference=reference, shift=(0.5, 1.0, -1.0, 0.0), scale=(2.0, 1.0, 0.5, 3.0))
    row = rng.normal(size=4).astype(np.float32)
    found = made.explain(row, method=method)
    weight_KD = made.model.head.weight_KD.numpy() * np.array([2.0, 1.0, 0.5, 3.0])
    np.testing.assert_allclose(found.value, weight_KD * (row - reference.astype(np.float64).mean(0)), rtol=1e-8, atol=0)
    np.testing.assert_allclose(found.logit_K, logits(made, row[None])[0])
    assert (found.names, found.cells) == (schema.columns, tuple(row.astype(np.float64).tolist()))
    zero = made.explain(row, method=method, baseline="zero")
    np.testing.assert_allclose(zero.value, weight_KD * row, rtol=1e-8, atol=0)  # captum adds up in steps


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        (lambda shape: Mlp(shape, hidden=[16, 8], activation="gelu", dropout=0.5), (6,)),
        (lambda shape: Cnn(shape, channels=[4, 4], width=8, dropout=0.5), (1, 8, 8)),
    ],
)
def test_the_parts_sum_to_the_difference_from_the_baseline(rng, backbone, shape):
    made = explainer(backbone(shape), InputSchema(shape), reference=rng.normal(size=(5, *shape)).astype(np.float32))
    row = rng.normal(size=shape).astype(np.float32) * 2
    found = made.explain(row, method=GRADIENTS, steps=300)
    difference_K = found.logit_K - found.baseline_logit_K
    sum_K = found.value.reshape(HEADS, -1).sum(1)
    np.testing.assert_allclose(sum_K - difference_K, found.missed_K, atol=1e-9)
    np.testing.assert_allclose(sum_K, difference_K, atol=0.01 * np.abs(difference_K).max())
    np.testing.assert_allclose(found.baseline_logit_K, logits(made, made.reference_rows.astype(np.float64).mean(0)[None])[0])


def table(**settings):
    cells = {"age": ["31", "?", "52", "40", "40", "18"], "job": ["cook", "clerk", "cook", "clerk", "cook", "pilot"]}
    return fit_table(cells.items(), settings=TableSettings(min_count=1, **settings), columns={})[0]


def test_the_numbers_that_stand_for_a_column_are_brought_back_to_it(rng):
    encoder = table()
    reference = encoder.encode([{"age": 20, "job": "cook"}, {"age": 60, "job": None}])
    made = explainer(Mlp(encoder.tensor.shape, hidden=[8], activation="silu", dropout=0.0), encoder.tensor, encoder, reference)
    record = {"job": "pilot", "age": "33"}
    found = made.explain(record, method=OCCLUSION)
    assert (found.names, found.cells) == (("age", "job"), ("33", "pilot"))
    x, blank = encoder.encode([record]).astype(np.float64), reference.astype(np.float64).mean(0)
    assert encoder.places() == {"age": slice(0, 2), "job": slice(2, encoder.tensor.size)}
    for number, name in enumerate(found.names):
        without = x.copy()
        without[0, encoder.places()[name]] = blank[encoder.places()[name]]
        np.testing.assert_allclose(found.value[:, number], (logits(made, x) - logits(made, without))[0], atol=1e-12)
    gradients = made.explain(record, method=GRADIENTS, steps=200)
    assert gradients.value.shape == (HEADS, 2)
    np.testing.assert_allclose(gradients.value.sum(1), found.logit_K - found.baseline_logit_K, atol=1e-4)


def test_columns_that_are_an_index_are_occluded_by_a_missing_cell_and_have_no_gradient():
    from ovr.backbone.tabular import Tabular

    encoder = table(embedded=("job",))
    settings = {"width": 8, "num_blocks": 1, "hidden_factor": 2, "activation": "relu", "dropout": 0, "hidden_dropout": 0}
    backbone = Tabular(encoder.tensor.shape, embedded=("job",), num_buckets=256, embedding_width=4, **settings)
    made = explainer(backbone, encoder.tensor, encoder)
    record = {"age": 33, "job": "pilot"}
    found = made.explain(record, method=OCCLUSION)
    expected = logits(made, encoder.encode([record])) - logits(made, encoder.encode([{**record, "job": None}]))
    np.testing.assert_allclose(found.value[:, 1], expected[0], atol=1e-12)
    with pytest.raises(ConfigError, match=r"columns 'job' are looked up in a table .* use method=occlusion"):
        made.explain(record, method=GRADIENTS)


def bag(num_tokens, length, **changes):
    settings = {"width": 6, "idf": True, "min_rows": 1, "l2": True, "init": 0.5, "token_dropout": 0.0, "dropout": 0.0}
    settings |= {"hidden": [], "activation": "relu", "latent": 0, "latent_weight": 1.0, **changes}
    return Bag((length, 2), num_tokens=num_tokens, **settings)


TEXT = "Don't bank on the bank, the BANK!"


@pytest.mark.parametrize(("words", "chars"), [((1, 2), (3, 5)), ((2, 3), None), (None, (2, 4))])
def test_the_ngrams_of_a_text_are_the_tokens_that_it_is_encoded_as(words, chars):
    encoder = HashedText(num_tokens=1 << 20, max_tokens=400, words=words, chars=chars)
    found = encoder.ngrams(TEXT)
    row = encoder.encode([TEXT])[0]
    assert set(found.number_P.tolist()) == set(row[row[:, 1] > 0, 0].astype(int).tolist())
    assert len(found.number_P) == len(found.first_P) == len(found.num_words_P)
    assert [found.text[start:end] for start, end in found.spans] == ["Don't", "bank", "on", "the", "bank", ",", "the", "BANK", "!"]
    for number, first, count in zip(found.number_P, found.first_P, found.num_words_P, strict=True):
        alone = encoder.ngrams(" ".join(found.text[slice(*span)] for span in found.spans[first : first + count]))
        assert number in alone.number_P


def test_a_linear_bag_gives_each_word_its_tokens_share_of_the_logit():
    encoder = HashedText(num_tokens=1 << 16, max_tokens=400)
    made = explainer(bag(1 << 16, 400), encoder.tensor, encoder)
    found = made.explain(TEXT, method=GRADIENTS)
    number_BL, weight_BL = made.model.backbone.weighted(torch.from_numpy(encoder.encode([TEXT]).astype(np.float64)))
    adds_LK = weight_BL[0, :, None] * (made.model.backbone.vector_VD[number_BL[0]] @ made.model.head.weight_KD.T)
    adds = {int(number): adds_K.numpy() for number, adds_K in zip(number_BL[0], adds_LK, strict=True) if adds_K.any()}
    ngrams = encoder.ngrams(TEXT)
    expected_FK = np.zeros((len(ngrams.spans), HEADS))
    for number, first, count in zip(ngrams.number_P, ngrams.first_P, ngrams.num_words_P, strict=True):
        expected_FK[first : first + count] += adds[int(number)] / (ngrams.number_P == number).sum() / count
    np.testing.assert_allclose(found.value, expected_FK.T, atol=1e-12)
    np.testing.assert_allclose(found.value.sum(1), found.logit_K - found.baseline_logit_K, atol=1e-9)
    np.testing.assert_allclose(found.rest_K, 0, atol=1e-9)
    np.testing.assert_allclose(found.baseline_logit_K, logits(made, encoder.encode([""]))[0], atol=1e-12)


def test_a_word_that_is_left_out_is_left_out_of_the_text():
    encoder = HashedText(num_tokens=1 << 12, max_tokens=300)
    made = explainer(bag(1 << 12, 300, hidden=[8]), encoder.tensor, encoder)
    found = made.explain("lost my card", method=OCCLUSION)
    texts = ["lost my card", " my card", "lost  card", "lost my "]
    whole, *rest = logits(made, encoder.encode(texts))
    np.testing.assert_allclose(found.value, whole[:, None] - np.array(rest).T, atol=1e-12)
    assert parts.without("a b c", [(0, 1), (4, 5)], np.array([False, False])) == " b "


@pytest.mark.parametrize("method", [GRADIENTS, OCCLUSION])
def test_sparse_rows_are_explained_by_feature(method):
    encoder = SparseRows(num_features=50, max_tokens=8)
    made = explainer(bag(50, 8, l2=False, idf=False), encoder.tensor.__class__((8, 2), encoder=encoder.to_json()), encoder)
    found = made.explain({"3": 2.0, "41": -1.0}, method=method)
    vector_VD, weight_KD = made.model.backbone.vector_VD, made.model.head.weight_KD
    expected = torch.stack([2.0 * (weight_KD @ vector_VD[3]), -1.0 * (weight_KD @ vector_VD[41])], 1)
    np.testing.assert_allclose(found.value, expected, atol=1e-12)
    assert (found.names, found.cells) == (("feature 3", "feature 41"), (2.0, -1.0))


def test_a_square_of_one_pixel_is_the_pixel(rng):
    made = explainer(Mlp((1, 3, 4), hidden=[8], activation="relu", dropout=0), InputSchema((1, 3, 4)))
    row = rng.normal(size=(1, 3, 4)).astype(np.float32)
    found = made.explain(row, method=OCCLUSION, window=1)
    for at in np.ndindex(3, 4):
        without = row.copy()
        without[(0, *at)] = 0
        np.testing.assert_allclose(
            found.value[(slice(None), *at)], (logits(made, row[None]) - logits(made, without[None]))[0], atol=1e-9
        )
    flat = explainer(Mlp((3, 4), hidden=[8], activation="relu", dropout=0), InputSchema((3, 4)))
    flat.model.load_state_dict(made.model.state_dict())
    np.testing.assert_allclose(flat.explain(row[0], method=OCCLUSION, window=1).value, found.value, atol=1e-9)
    gradients = flat.explain(row[0], method=GRADIENTS, steps=200)
    np.testing.assert_allclose(gradients.value.sum((1, 2)), gradients.logit_K - gradients.baseline_logit_K, atol=0.02)


def test_the_tokens_of_a_transformer_stand_where_they_are_in_the_text(tmp_path):
    pytest.importorskip("transformers")
    from ovr.backbone.transformer import Transformer
    from ovr.input.tokens import Tokens
    from tests.encoders import save_encoder

    folder = save_encoder(tmp_path / "encoder")
    settings = {"pooling": "mean", "layers": [-1], "frozen": True, "trained_layers": "all", "lora_rank": None, "lora_alpha": 16}
    settings |= {"lora_dropout": 0.0, "lora_targets": "all-linear", "gradient_checkpointing": False}
    encoder = Tokens.from_pretrained(str(folder), max_tokens=12)
    made = explainer(Transformer((12, 2), path=str(folder), **settings), encoder.tensor, encoder)
    found = made.explain("My card is lost", method=GRADIENTS, steps=200)
    assert [found.text[start:end] for start, end in found.spans] == ["My", "card", "is", "lost"]
    difference_K = found.logit_K - found.baseline_logit_K
    np.testing.assert_allclose(found.value.sum(1) + found.rest_K - difference_K, found.missed_K, atol=1e-6)
    np.testing.assert_allclose(found.missed_K, 0, atol=0.02 * np.abs(difference_K).max())
    np.testing.assert_allclose(found.rest_K, 0, atol=1e-6)  # special tokens are as they were
    left_out = made.explain("My card is lost", method=OCCLUSION)
    whole, without = logits(made, encoder.encode(["My card is lost", "My  is lost"]))
    np.testing.assert_allclose(left_out.value[:, 1], whole - without, atol=1e-9)


def hashed():
    return HashedText(num_tokens=64, max_tokens=20)


@pytest.mark.parametrize(
    ("made", "record", "settings", "error", "message"),
    [
        (lambda: explainer(Identity((2,)), InputSchema((2,))), [1, 2], {"method": "shap"}, ConfigError, "method is 'shap'"),
        (lambda: explainer(Identity((2,)), InputSchema((2,))), [1, 2], {"baseline": "max"}, ConfigError, "baseline is 'max'"),
        (lambda: explainer(Identity((2,)), InputSchema((2,))), [1, 2], {"steps": 0}, ConfigError, "steps is 0; expected a whole"),
        (lambda: explainer(Identity((1, 4, 4)), InputSchema((1, 4, 4))), np.ones((1, 4, 4)), {"method": OCCLUSION, "window": 5},
         ConfigError, "window is 5; expected a whole number of pixels from 1 to 4"),
        (lambda: explainer(Identity((1, 2, 2, 2)), InputSchema((1, 2, 2, 2))), np.ones((1, 2, 2, 2)), {}, ConfigError,
         "rows have shape (1, 2, 2, 2); explanations are of flat rows, images, texts and sparse rows"),
        (lambda: explainer(Identity((20, 2)), hashed().tensor, hashed()), "a text", {}, ConfigError,
         "integrated gradients of tokens need backbone=bag, got Identity; use method=occlusion"),
        (lambda: explainer(bag(64, 20), hashed().tensor, hashed()), " ", {}, InputError, "has no word to explain by"),
        (lambda: explainer(bag(64, 20), hashed().tensor, hashed()), "a " * (MAX_WORDS + 1), {"method": OCCLUSION}, InputError,
         "has 401 words; method=occlusion leaves them out one by one, of 1 to 400"),
    ],
)  # fmt: skip
def test_what_cannot_be_explained_says_why(made, record, settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        made().explain(record, **{"method": GRADIENTS, **settings})


def test_tokens_of_another_backbone_than_a_transformer_can_be_left_out_only():
    pytest.importorskip("tokenizers")
    from ovr.input.joined import JoinedTexts
    from ovr.input.tokens import Tokens
    from tests.encoders import tokenizer_json

    encoder = Tokens(tokenizer_json(), 8)
    made = explainer(bag(64, 8), encoder.tensor, encoder)
    with pytest.raises(ConfigError, match="need backbone=transformer, got Bag; use method=occlusion"):
        made.explain("my card", method=GRADIENTS)
    assert made.explain("my card", method=OCCLUSION).value.shape == (HEADS, 2)
    joined = JoinedTexts({"bag": HashedText(64, 20), "transformer": encoder})
    made = explainer(bag(64, 28), joined.tensor, joined)
    with pytest.raises(ConfigError, match="that several encoders take have no tokens; use method=occlusion"):
        made.explain("my card", method=GRADIENTS)
    assert made.explain("my card", method=OCCLUSION).value.shape == (HEADS, 2)


def test_without_captum_the_error_says_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(attribute, "import_module", absent)
    with pytest.raises(ConfigError, match=r"pip install 'ovr\[explain\]'"):
        explainer(Identity((2,)), InputSchema((2,))).explain([1, 2], method=OCCLUSION)
