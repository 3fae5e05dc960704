"""Columns: what fitting learns from the training rows; features equal those of scikit-learn's pipeline."""

import copy
import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnx.errors import DataError
from nnx.preprocessing import columns
from nnx.preprocessing.columns import LARGEST, UNSEEN, CategoryColumn, Columns, NumberColumn
from nnx.preprocessing.spec import Spec

NUMBERS = st.none() | st.floats(-1e6, 1e6).map(lambda x: round(x, 3)) | st.integers(-5, 5).map(float)
NAMES = st.none() | st.sampled_from(["a", "b", "c", "d10", "d9", 'é,"', "1", "-2"])


@st.composite
def frames(draw):
    """A frame with columns of numbers (n0, n1, ...) and of categories (c0, ...), each with a value in its first
    row."""
    N = draw(st.integers(4, 30))
    numbers = {f"n{i}": draw(st.lists(NUMBERS, min_size=N, max_size=N)) for i in range(draw(st.integers(0, 3)))}
    names = {f"c{i}": draw(st.lists(NAMES, min_size=N, max_size=N)) for i in range(draw(st.integers(not numbers, 3)))}
    for values, known in (
        (values, known) for part, known in ((numbers, 1.5), (names, "a")) for values in part.values()
    ):
        values[0] = known
    return pl.DataFrame(
        {**numbers, **names}, schema={**dict.fromkeys(numbers, pl.Float64), **dict.fromkeys(names, pl.String)}
    )


def inferred(frame):
    return columns.infer(frame, "data", [name for name in frame.columns if name.startswith("c")])


def by_scikit_learn(frame, train):
    """The features of `frame` from scikit-learn's imputer, scaler and encoder, fitted on the first `train` rows."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    features = []
    for name in frame.columns:
        if name.startswith("n"):
            values = frame[name].to_numpy()[:, None]
            pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(values[:train])
            features.append(pipeline.transform(values))
            if np.isnan(values[:train]).any():
                features.append(np.isnan(values))
        else:
            values = np.array(frame[name].to_list(), object)[:, None]
            listed = list(columns.sort_naturally(set(values[:train, 0]) - {None}))
            listed += [None] if None in values[:train, 0] else []
            encoder = OneHotEncoder(handle_unknown="ignore", categories=[np.array(listed, object)], sparse_output=False)
            features.append(encoder.fit(values[:train]).transform(values))
    return np.concatenate(features, axis=1)


@settings(max_examples=50)  # scikit-learn takes 20 ms for one
@given(frames())
def test_features_are_those_of_scikit_learn(frame):
    train = len(frame) // 2
    unfitted = inferred(frame)
    encoded = unfitted.encode(frame, "data")
    fitted = unfitted.fit(encoded[:train])
    features = fitted.apply(encoded, unfitted)
    assert features.dtype == np.float32
    assert features.shape == (len(frame), fitted.features) == (len(frame), len(fitted.feature_names))
    expected = by_scikit_learn(frame, train)
    for index, column in enumerate(
        column for column in fitted.columns if isinstance(column, NumberColumn) and not column.std
    ):
        assert len(set(frame[column.name][:train].drop_nulls())) == 1, index
        expected[:, fitted.feature_names.index(column.name)] = 0  # scikit-learn does not change later rows
    np.testing.assert_allclose(features, np.clip(expected, -1e6, 1e6), rtol=1e-5, atol=1e-5)
    numbers = [
        fitted.feature_names.index(column.name)
        for column in fitted.columns
        if isinstance(column, NumberColumn) and column.std
    ]
    np.testing.assert_allclose(features[:train, numbers].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(features[:train, numbers].std(0), 1, atol=1e-4)


@given(frames())
def test_columns_survive_their_json(frame):
    unfitted = inferred(frame)
    fitted = unfitted.fit(unfitted.encode(frame, "data"))
    for each in (unfitted, fitted):
        again = Columns.from_dict(json.loads(json.dumps(each.to_dict())))
        assert again == each
    F = fitted.features
    spec = Spec((F,), ("a", "b"), (0.0,) * F, (1.0,) * F, columns=fitted)
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(frames())
def test_how_rows_were_coded_does_not_matter(frame):
    """The features are the same whether the fitted columns encode the rows, those of the whole file, those in another
    order with an extra column, or the rows are text."""
    train = len(frame) // 2
    unfitted = inferred(frame)
    fitted = unfitted.fit(unfitted.encode(frame, "data")[:train])
    expected = fitted.apply(unfitted.encode(frame, "data"), unfitted)
    np.testing.assert_array_equal(fitted.apply(fitted.encode(frame, "data"), fitted), expected)
    other = frame.select(*reversed(frame.columns)).with_columns(extra=pl.lit("x"))
    by = inferred(other.drop("extra"))
    np.testing.assert_array_equal(fitted.apply(by.encode(other, "data"), by), expected)
    text = frame.select(pl.all().cast(pl.String))
    np.testing.assert_array_equal(fitted.apply(fitted.encode(text, "data"), fitted), expected)
    after = by.fit(by.encode(other, "data")[train:])  # lists other categories: all others are unseen
    for column in after.columns:
        if isinstance(column, CategoryColumn):
            unknown = set(frame[column.name].drop_nulls()) - set(column.categories)
            encoded = after.encode(frame, "data")[:, after.columns.index(column)]
            assert (np.isin(frame[column.name].to_list(), list(unknown)) == (encoded == UNSEEN)).all()


def test_timestamps_keep_their_differences():
    """float32 has 24 bits: it resolves seconds since 1970 in steps of 128 s, and nanoseconds in steps of 2 minutes."""
    for scale in (1, 10**9):
        times = 1_700_000_000 * scale + np.arange(100) * scale
        frame = pl.DataFrame({"time": times})
        unfitted = columns.infer(frame, "data")
        fitted = unfitted.fit(unfitted.encode(frame, "data"))
        expected = (np.arange(100) - 49.5) / np.std(np.arange(100))
        np.testing.assert_allclose(fitted.apply(fitted.encode(frame, "data"), fitted)[:, 0], expected, atol=1e-5)
        assert len(np.unique(times.astype(np.float32))) < 3, "the control: float32 alone would have lost them"


def test_a_constant_column_has_a_feature_of_zeros():
    frame = pl.DataFrame({"x": [0.1] * 7})
    unfitted = columns.infer(frame, "data")
    fitted = unfitted.fit(unfitted.encode(frame, "data"))
    (column,) = fitted.columns
    assert (column.std, column.missing, column.indicator) == (0, 0.1, False)
    assert fitted.apply(fitted.encode(pl.DataFrame({"x": [0.1, 1e9, None]}), "data"), fitted).tolist() == [
        [0],
        [0],
        [0],
    ]


def test_a_column_without_training_values():
    frame = pl.DataFrame({"x": [None, None, 3.0], "c": [None, None, "a"]})
    unfitted = columns.infer(frame, "data")
    fitted = unfitted.fit(unfitted.encode(frame, "data")[:2])
    assert fitted.feature_names == ("x", "c is missing")
    assert fitted.apply(fitted.encode(frame, "data"), fitted).tolist() == [[0, 1], [0, 1], [0, 0]]


def test_far_values_are_clipped():
    frame = pl.DataFrame({"x": [0.0, 1.0]})
    unfitted = columns.infer(frame, "data")
    fitted = unfitted.fit(unfitted.encode(frame, "data"))
    features = fitted.apply(fitted.encode(pl.DataFrame({"x": [LARGEST, -LARGEST]}), "data"), fitted)
    assert features.tolist() == [[1e6], [-1e6]]
    tiny = Columns((NumberColumn("x", 0, 5e-324),))
    assert tiny.apply(tiny.encode(pl.DataFrame({"x": [LARGEST]}), "data"), tiny).tolist() == [[1e6]]


def test_kinds():
    frame = pl.DataFrame(
        {"a": ["1", "2.5", "-1e3", None], "b": ["x", "1", "y", None], "c": ["1.0", "2", "1", None], "d": [1, 2, 3, 4]}
    )
    inferred_columns = columns.infer(frame, "data", ["c"])
    assert inferred_columns.columns == (
        NumberColumn("a"),
        CategoryColumn("b", ("1", "x", "y")),
        CategoryColumn("c", ("1", "2")),
        NumberColumn("d"),
    )
    np.testing.assert_array_equal(inferred_columns.encode(frame, "data")[:, 2], [0, 1, 0, math.nan])


def test_numbers_may_have_become_categories_and_the_reverse():
    """A column with the values 1, 2, x has categories; in a file with only 1 and 2, it would have numbers."""
    mixed, whole = pl.DataFrame({"c": ["1", "2", "x"]}), pl.DataFrame({"c": ["2.0", "1", "3", None]})
    by_text, by_number = columns.infer(mixed, "data"), columns.infer(whole, "data")
    assert [type(each.columns[0]) for each in (by_text, by_number)] == [CategoryColumn, NumberColumn]
    assert by_text.apply(by_number.encode(whole, "data"), by_number).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]
    numbers = by_number.fit(np.array([[0.0], [2.0]]))
    named = Columns((CategoryColumn("c", ("1", "2")),))
    assert numbers.apply(named.encode(whole, "data"), named).tolist() == [[1], [0], [0], [0]]
    with pytest.raises(DataError, match="column 'c' contains 'x', but contained numbers"):
        numbers.apply(by_text.encode(mixed, "data"), by_text)


def test_categories_of_both_frames():
    first, second = pl.DataFrame({"c": ["b", "a"], "n": [1, 2]}), pl.DataFrame({"c": ["z", None], "n": [3, 4]})
    unfitted = columns.infer(first, "data")
    assert unfitted.with_categories_of(second).columns == (CategoryColumn("c", ("a", "b", "z")), NumberColumn("n"))
    assert unfitted.with_categories_of(pl.DataFrame({"x": [1]})) == unfitted


def test_a_missing_column_is_named():
    fitted = Columns((NumberColumn("age"), CategoryColumn("city", ("x",))))
    with pytest.raises(DataError, match=r"^rows\.csv: has no column 'city', did you mean 'cty'\?$"):
        fitted.encode(pl.DataFrame({"age": [1], "cty": ["x"]}), "rows.csv")
    with pytest.raises(DataError, match="has no column 'age' among its 30 columns"):
        fitted.encode(pl.DataFrame({f"column {i}": [1] for i in range(30)}), "rows.csv")
    other = Columns((NumberColumn("age"),))
    with pytest.raises(DataError, match=r"has no column 'city', one of: age\. The network was trained with it"):
        fitted.apply(np.zeros((1, 1)), other)


def test_what_is_neither_numbers_nor_text_is_refused():
    frame = pl.DataFrame({"x": [[1], [2]]})
    with pytest.raises(
        DataError, match=r"column 'x' contains List\(Int64\), neither numbers nor text; list it under drop"
    ):
        columns.infer(frame, "data")


def test_too_many_columns_and_categories_are_refused():
    with pytest.raises(DataError, match="has 10,001 columns, at most 10,000 can be used"):
        columns.infer(pl.DataFrame({f"x{i}": [1.0] for i in range(10_001)}), "data")
    texts = [f"t{i // 2}" for i in range(2000)]
    with pytest.raises(DataError, match="has 101,000 categories in all, at most 100,000"):
        columns.infer(pl.DataFrame({f"c{i}": texts for i in range(101)}), "data")
    with pytest.raises(DataError, match="has a name of 201 characters"):
        columns.infer(pl.DataFrame({"x" * 201: [1.0]}), "data")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "-1", "2.5"], ["-1", "2.5", "9", "10"]),
        (["class 10", "class 9", "class", "b"], ["b", "class", "class 9", "class 10"]),
        (["10b", "9b", "a", "b"], ["9b", "10b", "a", "b"]),
        (["7" * 30, "x", "é"], ["7" * 30, "x", "é"]),
        (["0", "1", "nan"], ["0", "1", "nan"]),
    ],
)
def test_natural_order(names, expected):
    assert columns.sort_naturally(reversed(names)) == columns.sort_naturally(names) == tuple(expected)


def test_further_words_for_missing_values_survive_the_json():
    """Issue 15, number 6. A checkpoint without such words has no key for them, as before."""
    frame = pl.DataFrame({"x": ["1", "-999", "3"], "c": ["a", "unknown", "b"]})
    unfitted = columns.infer(frame, "data", missing=["-999", "unknown"])
    assert unfitted.columns == (NumberColumn("x"), CategoryColumn("c", ("a", "b")))
    fitted = unfitted.fit(unfitted.encode(frame, "data"))
    again = Columns.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    features = again.apply(again.encode(pl.DataFrame({"x": [-999], "c": ["unknown"]}), "data"), again)
    assert features.tolist() == [[0, 1, 0, 0, 1]]
    assert columns.infer(frame, "data", ["x"]).to_dict().keys() == {"columns"}


def test_a_notation_is_in_the_checkpoint_only_where_there_is_one():
    """Issue 15, number 4. Predictions read numbers as training did."""
    frame = pl.DataFrame({"x": ["5,1", "1.000,5", "3"], "n": [1, 2, 3]})
    unfitted = columns.infer(frame, "data")
    fitted = unfitted.fit(unfitted.encode(frame, "data"))
    assert fitted.notated == ["x"]
    assert fitted.columns[0].missing == 5.1
    data = json.loads(json.dumps(fitted.to_dict()))
    assert ["notation" in column for column in data["columns"]] == [True, False]
    again = Columns.from_dict(data)
    assert again == fitted
    np.testing.assert_array_equal(again.encode(frame, "data"), [[5.1, 1], [1000.5, 2], [3, 3]])
    np.testing.assert_array_equal(again.encode(pl.DataFrame({"x": [5.1], "n": [1]}), "data"), [[5.1, 1]])
    with pytest.raises(DataError, match=r"contains '5.1 kg', which is not a number in its notation \(decimal comma, "):
        again.encode(pl.DataFrame({"x": ["5.1 kg"], "n": [1]}), "data")


def test_notations_meet_categories_and_other_units():
    frame = pl.DataFrame({"x": ["5,1", "6,2"]})
    notated = columns.infer(frame, "data")
    named = columns.infer(frame, "data", ["x"])
    assert isinstance(named.columns[0], CategoryColumn)
    encoded = notated.encode(frame, "data")
    assert named.apply(encoded, notated).tolist() == [[1, 0], [0, 1]], "as of a checkpoint from before notations"
    fitted = notated.fit(encoded)
    np.testing.assert_array_equal(fitted.apply(named.encode(frame, "data"), named), fitted.apply(encoded, notated))
    measured = pl.DataFrame({"x": ["5,1 cm", "6,2 cm"]})
    by = columns.infer(measured, "data")
    with pytest.raises(DataError, match="column 'x' is in 'cm', but was without a unit in the training data"):
        fitted.apply(by.encode(measured, "data"), by)


def test_a_mistake_among_numbers_in_a_notation_is_named():
    frame = pl.DataFrame({"x": [*(f"{i},5" for i in range(20)), "abc"]})
    with pytest.raises(DataError, match=r"row 21: column 'x' contains 'abc' but otherwise numbers \(decimal comma\)"):
        columns.infer(frame, "data")


GOOD = Columns((NumberColumn("n", 1.5, 2.0, 1.0, True), CategoryColumn("c", ("a", "b"), False))).to_dict()


def changed(*path, to):
    data = copy.deepcopy(GOOD)
    target = data
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = to
    return data


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"columns": []},
        {"columns": {}},
        {"columns": [1]},
        {**GOOD, "more": 1},
        {**GOOD, "missing": "x"},
        {**GOOD, "missing": [1]},
        {**GOOD, "missing": ["x"] * 101},
        changed("columns", 0, "mean", to=math.nan),
        changed("columns", 0, "mean", to=math.inf),
        changed("columns", 0, "mean", to="1"),
        changed("columns", 0, "mean", to=True),
        changed("columns", 0, "std", to=-1.0),
        changed("columns", 0, "missing", to=10**400),
        changed("columns", 0, "indicator", to=1),
        changed("columns", 0, "name", to=""),
        changed("columns", 0, "name", to="x" * 201),
        changed("columns", 0, "name", to=3),
        changed("columns", 0, "name", to="c"),
        changed("columns", 0, "kind", to="category"),
        changed("columns", 0, "other", to=1),
        changed("columns", 0, "notation", to={}),
        changed("columns", 0, "notation", to=None),
        changed("columns", 1, "notation", to={"decimal": ",", "grouped": False, "unit": ""}),
        changed("columns", 1, "kind", to="number"),
        changed("columns", 1, "kind", to="text"),
        changed("columns", 1, "categories", to="ab"),
        changed("columns", 1, "categories", to=["a", "a"]),
        changed("columns", 1, "categories", to=["a", 1]),
        changed("columns", 1, "categories", to=["", "a"]),
        changed("columns", 1, "categories", to=[str(i) for i in range(1001)]),
        {"columns": [{"kind": "category", "name": "c", "categories": [], "indicator": False}]},
        {"columns": [{**GOOD["columns"][0], "name": str(i)} for i in range(10_001)]},
        {
            "columns": [
                {**GOOD["columns"][1], "name": str(i), "categories": list(map(str, range(1000)))} for i in range(101)
            ]
        },
    ],
)
def test_invalid_columns_are_refused(data):
    assert Columns.from_dict(copy.deepcopy(GOOD)).to_dict() == GOOD, "the control"
    with pytest.raises((ValueError, KeyError, TypeError)):
        Columns.from_dict(data)


GROUPED = [f"{n}.{n * 37 % 900 + 100}" for n in range(1, 41)]


@pytest.mark.parametrize(
    ("texts", "others", "warning"),
    [
        (
            [*GROUPED, "999", "5"],
            ["1"],
            "'x' contains '1.137', read as 1.137; if points separate its thousands, write 1137",
        ),
        ([*GROUPED, "1.5"], ["1"], None),
        ([*GROUPED, "0.125", "7"], ["1"], None),
        ([*GROUPED, "12345", "7"], ["1"], None),
        (GROUPED, ["1"], None),
        (GROUPED, ["1,5", "2,25"], "'x' contains '1.137', read as 1.137; if points separate its thousands, write 1137"),
        (["00123", "10115"], ["1"], "'x' contains '00123', read as 123; if these are codes"),
        (["01", "12"], ["1"], None),
        (["0012", "123"], ["1"], None),
    ],
)
def test_numbers_that_may_be_others_are_warned_of(texts, others, warning):
    """1.234 beside 999 was 1.234, where whole numbers had points between their thousands."""
    frame = pl.DataFrame({"x": texts, "y": [others[n % len(others)] for n in range(len(texts))]})
    found = columns.describe_doubtful_numbers(frame, columns.infer(frame, "t.csv"))
    assert [text.startswith(warning or "") for text in found] == [True] * bool(warning)


def test_a_list_of_images_is_no_table():
    frame = pl.DataFrame({"file": [f"x/{n}.PNG" for n in range(20)]})
    with pytest.raises(DataError, match=r"'file' names image files, such as 'x/0\.PNG'; use the dataset folder"):
        columns.infer(frame, "list.csv")
