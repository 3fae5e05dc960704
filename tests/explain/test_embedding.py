"""Maps of what layers find alike: their figures against scikit-learn's and numpy's, and classes that are apart or are
not."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from teach import taught

from nnx import explain
from nnx.datasets import Split
from nnx.errors import DataError
from nnx.explain import embedding


@pytest.fixture(scope="module")
def clouds():
    """Three clouds of 60 points in 12 dimensions, far apart, and which each point is of."""
    labels = np.repeat(np.arange(3), 60)
    rng = np.random.default_rng(0)
    return (rng.normal(size=(180, 12)) + 12 * rng.normal(size=(3, 12))[labels]).astype(np.float32), labels


def test_neighbours_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 150)
    points = (rng.normal(size=(150, 5)) + labels[:, None] * 0.7).astype(np.float32)
    found = embedding.separation(points, labels)
    predicted = cross_val_predict(KNeighborsClassifier(embedding.NEIGHBOURS), points, labels, cv=LeaveOneOut())
    assert found["neighbours"] == pytest.approx((predicted == labels).mean())
    assert 0.3 < found["neighbours"] < 0.9
    assert found["silhouette"] == pytest.approx(silhouette_score(points, labels))


def test_separation_tells_apart_from_mixed(clouds):
    points, labels = clouds
    mixed = np.random.default_rng(0).permutation(labels)
    apart, together = embedding.separation(points, labels), embedding.separation(points, mixed)
    assert apart["neighbours"] == 1
    assert apart["silhouette"] > 0.7
    assert together["neighbours"] == pytest.approx(1 / 3, abs=0.12)
    assert abs(together["silhouette"]) < 0.05


def test_components_are_those_of_the_covariance(clouds):
    points, _ = clouds
    projections = embedding.principal_components({"layer": points, "flat": points[:, :1]})
    variances = np.linalg.eigvalsh(np.cov(points.T, ddof=0))[::-1]
    np.testing.assert_allclose(projections["layer"].var(0), variances, rtol=1e-3)
    distances = [np.linalg.norm(each[:, None] - each[None], axis=2) for each in (points, projections["layer"])]
    np.testing.assert_allclose(*distances, atol=1e-3)  # all twelve: a rotation
    assert projections["flat"].shape == (180, 2)
    assert not projections["flat"][:, 1].any()


def test_tsne_keeps_clouds_apart_and_is_the_same_each_time(clouds):
    points, labels = clouds
    points = embedding.principal_components({"": points})[""]
    found = embedding.tsne(points, seed=5)
    assert found.shape == (180, 2)
    assert embedding.separation(found, labels)["neighbours"] == 1
    assert (embedding.tsne(points, seed=5) == found).all()
    noise = np.random.default_rng(0).normal(size=(180, 12)).astype(np.float32)
    assert embedding.separation(embedding.tsne(noise, seed=5), labels)["neighbours"] < 0.6
    assert not embedding.tsne(np.zeros((50, 4), np.float32), seed=0).any(), "a layer that says the same of everything"


def test_names_do_not_cover_each_other():
    places = np.array([[0.0, 0.0], [0.0, 0.0], [0.3, 0.0], [9.0, 9.0]])
    moved = embedding._push_apart(places, 1.0)
    distances = np.linalg.norm(moved[:, None] - moved[None], axis=2) + 9 * np.eye(4)
    assert distances.min() > 0.9
    assert moved[3] == pytest.approx(places[3], abs=0.01)


def test_classes_come_apart_with_depth_in_a_network_that_has_learned(subject, monkeypatch):
    monkeypatch.setattr(embedding, "TSNE_STEPS", 250)  # the least there can be: half the time
    explained = taught(subject("mlp"))
    [(_, found)] = explain.explain(explained, ["embedding"])
    layers = found.figures["layers"]
    assert next(iter(layers)) == "input"
    assert list(layers)[-1] == "logits"
    assert found.figures["samples"] == len(explained.data("test"))
    first, last = layers["input"], list(layers.values())[-2]
    assert last["silhouette"] > first["silhouette"] + 0.1
    assert last["neighbours"] > last["neighbours_untrained"] + 0.05
    assert first["neighbours"] == first["neighbours_untrained"]
    points = explained.inputs(explained.data("test").inputs).flatten(1).numpy()
    assert first["silhouette"] == pytest.approx(
        silhouette_score(points, explained.data("test").labels), abs=0.01
    )  # of 50 components of 64
    [(_, again)] = explain.explain(explained, ["embedding"])
    assert again == found


def test_too_few_samples_are_an_error(subject):
    explained = subject("mlp")
    test = explained.data("test")
    for split in (test.take(np.arange(10)), Split(test.inputs[:30], np.zeros(30, dtype=np.int64))):
        few = explain.build_subject(
            explained.checkpoint, lambda _, split=split: split, explained.images, explained.names
        )
        with pytest.raises(DataError, match="embedding: needs 20 test samples of two classes"):
            embedding.explain(few)


def test_tsne_is_left_out_for_two_numbers_and_for_fewer_than_100_samples(table_subject, monkeypatch):
    monkeypatch.setattr(embedding, "tsne", lambda points, seed: points[:, :2])
    plane = {"input": np.zeros((100, 2)), "layer 1": np.zeros((100, 8)), "logits": np.zeros((100, 3))}
    titles = {name: name.capitalize() for name in plane}
    layers, reason = embedding._choose_tsne_layers(plane, titles)
    assert layers == ["layer 1"]
    assert reason == "There is no t-SNE map of Input, as two numbers are a map already."
    assert embedding._choose_tsne_layers(dict.fromkeys(plane, plane["input"]), titles)[0] == []
    few, reason = embedding._choose_tsne_layers({name: layer[:99] for name, layer in plane.items()}, titles)
    assert few == []
    assert reason == "There is no t-SNE map: it needs 100 samples, found 99."

    explained = table_subject("mlp")
    assert [picture.name for picture in embedding.explain(explained).pictures] == ["embedding-tsne", "embedding-pca"]
    rows = explained.data("test").take(np.arange(60))
    small = explain.build_subject(explained.checkpoint, lambda _: rows, explained.images, explained.names)
    [picture] = embedding.explain(small).pictures
    assert picture.name == "embedding-pca"
    assert "10-NN accuracy, of a vote" in picture.caption
    assert "needs 100 samples, found 60" in picture.caption


@pytest.mark.parametrize(("samples", "names"), [(99, 0), (100, 3)])
def test_names_hide_no_small_sample(samples, names):
    axes = embedding._draw.new_figure(3, 3).add_subplot()
    labels = np.arange(samples) % 3
    points = np.random.default_rng(0).normal(size=(samples, 2)).astype(np.float32)
    embedding._scatter(axes, points, labels, ("a", "b", "c"), 0.1)
    assert len(axes.texts) == names
