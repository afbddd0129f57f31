import numpy as np
import pytest
import torch

from ovr.backbone.bag import Bag
from ovr.core.onnx_file import GRAPH_OPS
from ovr.core.schema import InputSchema
from ovr.errors import ConfigError
from ovr.export.backbone import backbone_model
from ovr.export.check import check_structure, run
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel

NUM_TOKENS, PLACES = 40, 12
SETTINGS = {
    "num_tokens": NUM_TOKENS,
    "width": 16,
    "idf": True,
    "min_rows": 1,
    "l2": True,
    "init": 0.5,
    "latent": 0,
    "latent_weight": 1.0,
    "token_dropout": 0.0,
    "dropout": 0.0,
    "hidden": [],
    "activation": "relu",
}


def make(**changes):
    torch.manual_seed(0)
    return Bag((PLACES, 2), **{**SETTINGS, **changes})


def some_rows(num_rows, seed=0, num_tokens=NUM_TOKENS):
    """Rows of 0 to PLACES distinct tokens."""
    rng = np.random.default_rng(seed)
    x = np.zeros((num_rows, PLACES, 2), np.float32)
    for row, length in enumerate(rng.integers(0, PLACES + 1, num_rows)):
        x[row, :length, 0] = rng.choice(num_tokens, length, replace=False)
        x[row, :length, 1] = rng.uniform(0.5, 2, length)
    return x


def dense(x):
    """The rows as a matrix (N, V) of weights."""
    w_NV = np.zeros((len(x), NUM_TOKENS))
    np.add.at(w_NV, (np.arange(len(x))[:, None], x[..., 0].astype(int)), x[..., 1])
    return w_NV


def features(bag, x):
    with torch.no_grad():
        return bag.eval()(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("l2", [True, False])
@pytest.mark.parametrize("idf", [True, False])
def test_features_are_tfidf_times_a_matrix(idf, l2):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    train, other = some_rows(200), some_rows(31, seed=1)
    bag = make(idf=idf, l2=l2)
    bag.fit(train)
    reference = text.TfidfTransformer(norm="l2" if l2 else None, use_idf=idf).fit(dense(train))
    expected = reference.transform(dense(other)) @ bag.vector_VD.detach().numpy()
    np.testing.assert_allclose(features(bag, other), expected, rtol=1e-4, atol=1e-5)


def test_with_unit_vectors_the_features_are_the_scaled_weights():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    train, other = some_rows(200), some_rows(31, seed=1)
    bag = make(init="identity", width=NUM_TOKENS)
    bag.fit(train)
    expected = text.TfidfTransformer().fit(dense(train)).transform(dense(other)).toarray()
    np.testing.assert_allclose(features(bag, other), expected, rtol=1e-5, atol=1e-6)


def test_latent_features_are_those_of_a_truncated_svd():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    train, other = some_rows(200), some_rows(31, seed=1)
    bag = make(init="identity", width=NUM_TOKENS, latent=5, latent_weight=3.0)
    assert bag.num_features == NUM_TOKENS + 5
    bag.train().fit(train)
    assert bag.training
    tfidf = text.TfidfTransformer().fit(dense(train))
    _, _, direction_VV = np.linalg.svd(tfidf.transform(dense(train)).toarray())
    expected = tfidf.transform(dense(other)).toarray() @ direction_VV[:5].T
    got = features(bag, other)
    np.testing.assert_allclose(got[:, :-5], tfidf.transform(dense(other)).toarray(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.abs(got[:, -5:]), 3 * np.abs(expected), rtol=1e-4, atol=1e-5)
    direction_VD = bag.vector_VD[:, -5:].detach().numpy()
    assert (direction_VD.max(0) > -direction_VD.min(0)).all()  # the sign is chosen, so that it is the same everywhere


def test_tokens_of_too_few_training_rows_weigh_nothing():
    train = some_rows(60, num_tokens=30)
    bag = make(min_rows=14)
    bag.fit(train)
    num_rows_V = (dense(train) > 0).sum(axis=0)
    assert 0 < (num_rows_V >= 14).sum() < 30
    np.testing.assert_array_equal(bag.scale_V.numpy() > 0, num_rows_V >= 14)
    x = some_rows(5, seed=1)
    known = x.copy()
    known[..., 1] *= (num_rows_V >= 14)[x[..., 0].astype(int)]
    np.testing.assert_allclose(features(bag, x), features(bag, known), atol=1e-6)


def test_a_token_that_stands_twice_in_a_row_is_in_one_row():
    x = np.zeros((2, PLACES, 2), np.float32)
    x[0, :2] = [[7, 1.0], [7, 2.0]]
    bag = make(min_rows=2)
    bag.fit(x)
    assert bag.scale_V[7] == 0
    np.testing.assert_allclose(features(make(l2=False), x)[0], 3 * make().vector_VD[7].detach().numpy(), rtol=1e-5)


def test_a_row_without_tokens_has_finite_features_and_gradients():
    bag = make().train()
    x = torch.zeros(3, PLACES, 2)
    z_BD = bag(x)
    z_BD.sum().backward()
    assert not z_BD.any()
    assert bag.vector_VD.grad.isfinite().all()


def test_more_padding_changes_nothing():
    x = some_rows(9)
    longer = np.concatenate([x, np.zeros((9, 5, 2), np.float32)], axis=1)
    np.testing.assert_array_equal(features(make(), x), features(make(), longer))


def test_token_dropout_leaves_tokens_out_in_training_only():
    x = np.zeros((4000, PLACES, 2), np.float32)
    x[:, :4] = [[n, 1.0] for n in range(4)]
    bag = make(width=NUM_TOKENS, token_dropout=0.25, l2=False).train()
    with torch.no_grad():
        bag.vector_VD.copy_(torch.eye(NUM_TOKENS))
        kept = bag(torch.from_numpy(x))[:, :4]
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (kept == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert (features(bag, x)[:, :4] == 1).all()


@pytest.mark.parametrize("changes", [{}, {"l2": False, "idf": False}, {"hidden": [24, 8], "activation": "gelu"}])
def test_onnx_gives_torchs_features_and_the_same_bits_at_any_batch_size(changes):
    bag, x = make(**changes), some_rows(65)
    bag.fit(some_rows(100, num_tokens=35))
    model = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), bag, Linear(bag.num_features, num_heads=2))
    proto = backbone_model(model, InputSchema((PLACES, 2)))
    data = check_structure(proto, allowed_ops=GRAPH_OPS, what="backbone")
    whole = run(data, x, batch_size=65)
    np.testing.assert_allclose(whole, features(bag, x), atol=2e-6)
    for batch_size in (1, 2, 7, 32):
        np.testing.assert_array_equal(run(data, x, batch_size=batch_size), whole)


def test_the_same_seed_gives_the_same_gradients():
    x, grads = torch.from_numpy(some_rows(64)), []
    for _ in range(2):
        bag = make(token_dropout=0.3, dropout=0.2).train()
        torch.manual_seed(1)
        bag(x).square().sum().backward()
        grads.append(bag.vector_VD.grad)
    assert torch.equal(*grads)


def test_hidden_layers_follow_the_sum():
    assert make(hidden=[24, 8]).num_features == 8
    with pytest.raises(ConfigError, match=r"backbone\.hidden must be one or more whole widths"):
        make(hidden=[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 0}, r"backbone\.num_tokens must be a whole number above 0, got 0"),
        ({"width": 2.5}, r"backbone\.width must be a whole number above 0, got 2\.5"),
        ({"min_rows": True}, r"backbone\.min_rows must be a whole number"),
        ({"idf": "yes"}, r"backbone\.idf must be true or false, got 'yes'"),
        ({"l2": 1}, r"backbone\.l2 must be true or false, got 1"),
        ({"token_dropout": 1.0}, r"backbone\.token_dropout must be a probability"),
        ({"dropout": -0.1}, r"backbone\.dropout must be a probability"),
        ({"init": 0.0}, r"backbone\.init must be a positive number or identity, got 0\.0"),
        ({"init": "eye"}, r"backbone\.init must be a positive number or identity, got eye"),
        ({"latent": 40}, r"backbone\.latent must be a whole number from 0 to below the 40 tokens, got 40"),
        ({"latent": 3}, r"backbone\.latent=3 stands beside unit vectors; add backbone\.init=identity"),
        ({"latent_weight": 0.0}, r"backbone\.latent_weight must be a positive number, got 0\.0"),
        ({"init": "identity"}, r"backbone\.init=identity needs as wide a vector as there are tokens, 40, got width 16"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


@pytest.mark.parametrize("shape", [(8,), (1, 8, 8), (12, 3)])
def test_rows_that_are_no_tokens_are_refused(shape):
    with pytest.raises(ConfigError, match=r"backbone=bag needs rows of shape \(tokens, 2\)"):
        Bag(shape, **SETTINGS)


@pytest.mark.parametrize("number", [-1.0, NUM_TOKENS, 2.5])
def test_a_number_that_is_no_token_is_named(number):
    x = some_rows(6)
    x[4] = 0
    x[4, 0] = [number, 1.0]
    with pytest.raises(ConfigError, match=rf"training row 4 has token {number:g} at place 0; backbone\.num_tokens=40 needs"):
        make().fit(x)


def test_rows_that_are_normalised_are_refused():
    with pytest.raises(ConfigError, match=r"needs token numbers as they are, got data\.normalize=feature; set it to none"):
        make(normalize="feature")


def test_half_precision_is_refused():
    with pytest.raises(ConfigError, match=r"needs token numbers in float32, got torch\.bfloat16"):
        make()(torch.zeros(1, PLACES, 2, dtype=torch.bfloat16))
