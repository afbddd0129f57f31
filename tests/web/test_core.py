"""ovr/web/page/core beside what it is the same as: encoders, refusals, decisions and cohorts of EdgePredictor.

Node runs once, over cases that are made here. What ONNX Runtime does in a browser is tested with the pages.
"""

import base64
import hashlib
import math
import random
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ovr.core import outcomes
from ovr.core.artifact import DecisionPolicy
from ovr.core.cohorts import CohortCalibrations
from ovr.core.schema import InputSchema, check_rows
from ovr.decision.decide import decide
from ovr.errors import InputError
from ovr.input.columns import DateColumn
from ovr.input.image import ImageEncoder
from ovr.input.joined import JoinedTexts
from ovr.input.row_problems import row_problems
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText
from ovr.runtime.cohort_rows import cohort_names
from tests.cohorts import some_cohorts
from tests.web import odd_rows
from tests.web.nodes import needs_node, run

pytestmark = needs_node


def tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call gives, or what its InputError says."""
    try:
        return call(*arguments)
    except InputError as error:
        return str(error)


def encode_case(schema: InputSchema, rows: list[Any], **more: Any) -> dict[str, Any]:
    return {"kind": "encode", "input": schema.to_json(), "rows": rows, **more}


def encoder_case(encoder: Any, rows: list[Any], **more: Any) -> dict[str, Any]:
    return encode_case(InputSchema(encoder.tensor.shape, encoder=encoder.to_json()), rows, **more)


def problems_of(encode: Callable[[Any], Any], rows: list[Any]) -> dict[int, str]:
    """Return what `EdgePredictor.check` does."""
    owner = getattr(encode, "__self__", None)
    try:
        if isinstance(owner, TableEncoder):
            return owner.problems(rows)
    except InputError:
        pass
    return row_problems(len(rows), lambda some: encode(rows[some]))


def random_encoders(seed: int, count: int) -> list[tuple[dict[str, Any], Any]]:
    """Return cases of rows of every kind, each with the encoded array or the message, and the problems of its rows."""
    rnd = random.Random(seed)
    found = []
    for n in range(count):
        made: list[tuple[Any, list[Any]]] = [
            odd_rows.table(rnd),
            (odd_rows.hashed_text(rnd), odd_rows.texts(rnd)),
            odd_rows.sparse(rnd),
        ]
        if n % 10 == 0:
            made.append((JoinedTexts({"a": HashedText(100, 7), "b": odd_rows.hashed_text(rnd)}), odd_rows.texts(rnd)))
        for encoder, rows in made:
            found.append((encoder_case(encoder, rows), (tried(encoder.encode, rows), problems_of(encoder.encode, rows))))
        shape = rnd.choice([(3,), (2, 2), (1, 2, 3)])
        schema = InputSchema(shape, ("ä", "it's", "c") if shape == (3,) and rnd.random() < 0.7 else ())
        rows = odd_rows.numbers(rnd, shape)
        check = partial(check_rows, schema=schema)
        found.append((encode_case(schema, rows), (tried(check, rows), problems_of(check, rows))))
    return found


def random_images(seed: int, count: int) -> list[tuple[dict[str, Any], Any]]:
    rng, rnd = np.random.default_rng(seed), random.Random(seed)
    found = []
    for _ in range(count):
        height, width = rnd.randrange(1, 40), rnd.randrange(1, 40)
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        if rnd.random() < 0.5:
            pixels[..., 3] = 255
        encoder = ImageEncoder(
            *(rnd.randrange(1, 30), rnd.randrange(1, 30), rnd.choice(["grey", "rgb"]), rnd.choice(["stretch", "crop", "pad"])),
            *(rnd.choice(["nearest", "bilinear", "bicubic", "lanczos"]), rnd.randrange(256)),
        )
        content = base64.b64encode(pixels.tobytes()).decode()
        case = {"kind": "image", "encoder": encoder.to_json(), "width": width, "height": height, "pixels": content}
        found.append((case, encoder.encode([pixels])))
    return found


def random_decisions(seed: int, count: int) -> list[tuple[dict[str, Any], Any]]:
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        num_heads = int(rng.integers(1, 9))
        prob = rng.random((3, num_heads)).round(1 if n % 2 else 9).astype(np.float32)
        thresholds = rng.random(num_heads).round(1).tolist()
        policy = DecisionPolicy(
            "argmax" if rng.random() < 0.5 else "multilabel", float(rng.random().__round__(1)), int(rng.integers(1, 9))
        )
        how = {"mode": policy.mode, "abstain_below": policy.abstain_below, "top_k": policy.top_k}
        case = {"kind": "decide", "prob": prob.tolist(), "thresholds": thresholds, "policy": how}
        found.append((case, (prob, decide(prob, threshold_K=thresholds, policy=policy))))
    return found


COHORTS = [None, " F ", "X", "", ["F", None, 3, "M ", math.nan, 2.5, True], ["F"] * 6, ["F", ["M"], 1, 2, 3, 4, 5]]
RNG = random.Random(5)
FRACTIONS = [
    value for value in (10.0 ** RNG.randrange(-300, 300) * RNG.gauss(0, 1) for _ in range(300)) if not 1 <= abs(value) < 1e17
]
WORDS = [*(odd_rows.text(RNG) for _ in range(300)), *FRACTIONS]
WORDS += ["it's", 'a"b', "'\"\\\n\t\r\x00\x7f\xad", 1, 0, -5, 0.1, 1.5e-5, 5e-324, None, True, [1, "a"], {"k": [None]}]
GENERAL = FRACTIONS + [RNG.randrange(10**7) / 2**n for n in range(12) for _ in range(50)]
GENERAL += [1000.125, 1000.375, 999999.5, 123456.5, 1e-5, 0.0001, 0.0]
FLOATS = [
    "1",
    "1.",
    ".",
    " 1_0 ",
    "1__0",
    "_1",
    "١٢.٥",
    "1E+5",
    "inf",
    "-Infinity",
    "+nan",
    "0x10",
    "1e400",
    "\u20031.5",
    "\ufeff1",
]
FLOATS += ["1,5", "--1", "+.5e-3", "1e", "\x1c5", "𝟗𝟖", "1 2", "", *(odd_rows.text(RNG, 4) for _ in range(200))]
BYTES = [RNG.randbytes(size) for size in (0, 1, 55, 56, 63, 64, 65, 1000)]
DATE = TableEncoder((DateColumn("d", ("year",), 0.0, 0.0, 1.0, 0.0, 1.0, True, ("%G-%V",)),))
FORMATS = ("%d.%m.%Y", "%m/%d/%y %I:%M %p", "%Y-%j %H:%M:%S.%f", "%A, %d %B %Y", "%a %b %d %Y 100%% %z")
SECONDS = [0.0, -1.0, 951782400.5, *(float(RNG.randrange(-(10**9), 3 * 10**9)) + RNG.randrange(4) / 4 for _ in range(40))]
REFUSED = {
    "date": DATE.to_json(),
    "kind": {"kind": "sound"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What is asked, what Python says and what the page's modules say, by group."""
    cohorts = some_cohorts(1, column="sex")
    text = HashedText(1000, 5, columns=("title", "body"), joiner=" | ")
    numbers = InputSchema((2,), ("a", "b"))
    groups: dict[str, list[tuple[dict[str, Any], Any]]] = {
        "encoders": random_encoders(0, 120),
        "images": random_images(0, 60),
        "decisions": random_decisions(0, 60),
        "cohorts": [({"kind": "cohorts", "cohort": c, "numRows": 7, "names": cohorts.names}, c) for c in COHORTS],
        "words": [
            ({"kind": "repr", "values": WORDS}, [repr(value) for value in WORDS]),
            ({"kind": "general", "values": GENERAL}, [f"{value:g}" for value in GENERAL]),
            ({"kind": "float", "texts": FLOATS}, [float_of(text) for text in FLOATS]),
        ],
        "written": [({"kind": "written", "format": form, "seconds": SECONDS}, form) for form in FORMATS],
        "sha256": [({"kind": "sha256", "bytes": base64.b64encode(b).decode()}, hashlib.sha256(b).hexdigest()) for b in BYTES],
        "refused": [(encode_case(InputSchema((4, 2), encoder=encoder), []), name) for name, encoder in REFUSED.items()],
        "forms": [
            (encoder_case(text, [{"title": "Ab", "body": "c"}, "Ab | c"]), text.encode(["Ab | c"] * 2)),
            (encode_case(numbers, [{"b": " 2.5", "a": "-1e3"}, [-1000, 2.5]]), np.float32([[-1000, 2.5]] * 2)),
            (encode_case(InputSchema((1, 2, 2)), [[1, 2, 3, 4]]), np.float32([[[[1, 2], [3, 4]]]])),
            (encode_case(numbers, [{"a": 1}]), "row 0 has other columns than the model: missing 'b'; unknown none"),
            (encode_case(numbers, [{"a": 1, "b": "2x"}]), "row 0, column 'b' holds '2x'; expected a number"),
            (encode_case(InputSchema((2,)), [{"a": 1}]), "row 0 is an object, but the model's columns have no names"),
            (encode_case(numbers, [[1, 2], [1]]), "row 0 has shape (2,), row 1 has (1,)"),
            (encode_case(numbers, [[1, 2, 3]]), "rows have shape (1, 3); expected (rows, 2)"),
            (encode_case(numbers, []), "rows have shape (0,); expected (rows, 2)"),
            (encoder_case(text, []), "got no rows; expected at least one"),
            (encoder_case(text, [{"title": "a"}]), "row 0 has no column 'body'; the model's text is made of 'title', 'body'"),
            (encoder_case(text, [{"title": "a", "body": None}]), "row 0, column 'body' holds None; expected a text"),
            (encoder_case(HashedText(9, 5), [{"a": "x", "b": "y"}]), "row 0 has columns 'a', 'b'; expected one with the text"),
            (encoder_case(ImageEncoder(2, 2), ["a.png"]), "row 0 is str 'a.png'; expected {width, height, data} as ImageData"),
            (encoder_case(ImageEncoder(2, 2), [[1.0] * 11]), "row 0 rows have shape (1, 11); expected (rows, 3, 2, 2)"),
        ],
        "cohort column": cohort_rows(cohorts),
    }
    cases = [case for group in groups.values() for case, _ in group]
    said = iter(run(cases, tmp_path_factory.mktemp("cases")))
    return {name: [SimpleNamespace(case=c, want=want, said=next(said)) for c, want in group] for name, group in groups.items()}


def float_of(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def cohort_rows(cohorts: CohortCalibrations) -> list[tuple[dict[str, Any], Any]]:
    """Return rows with the cohort column where the table has it too, and where it has not."""
    found = []
    for seed in range(40):
        encoder, rows = odd_rows.table(random.Random(seed))
        if all(isinstance(row, dict) for row in rows):
            given = [{"sex": "F", **row} if n % 2 else row for n, row in enumerate(rows)]
            want = tried(encoder.encode, rows), problems_of(encoder.encode, rows)
            found.append((encoder_case(encoder, given, cohorts=cohorts.to_json()), want))
    return found


def array(said: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(said["value"]), np.float32)


def check_encoded(answer: Any) -> str:
    """Raise unless rows are encoded to the same bytes, or refused with the same messages; return which of the two."""
    want, problems = answer.want
    said = answer.said["encoded"]
    if isinstance(want, str):
        assert said.get("error") == want, answer.case
    else:
        assert "value" in said, (said, answer.case)
        assert array(said).tobytes() == want.tobytes(), answer.case
    by_row: dict[int, list[str]] = {}
    for problem in answer.said["check"]["value"]:
        by_row.setdefault(problem["row"], []).append(problem["message"])
        if problem["message"].startswith(("column '", 'column "')):
            assert problem["message"].startswith(f"column {problem['column']!r} ")
    assert {row: "; ".join(messages) for row, messages in by_row.items()} == problems, answer.case
    return "refused" if isinstance(want, str) else "encoded"


def test_rows_are_encoded_to_the_same_bytes_or_refused_with_the_same_words(answers):
    outcomes = [check_encoded(answer) for answer in answers["encoders"]]
    assert outcomes.count("encoded") > 200
    assert outcomes.count("refused") > 100


def test_the_cohort_column_is_taken_from_rows_before_they_are_encoded(answers):
    assert len(answers["cohort column"]) > 20
    for answer in answers["cohort column"]:
        check_encoded(answer)


def test_images_have_the_pixels_that_pillow_makes(answers):
    pil = pytest.importorskip("PIL")
    if int(pil.__version__.split(".")[0]) < 13:
        pytest.skip("before pillow 13 tall images are made less wide first")
    for answer in answers["images"]:
        np.testing.assert_array_equal(
            array(answer.said).reshape(answer.want.shape), answer.want, err_msg=str(answer.case["encoder"])
        )


def test_decisions_are_those_of_decide(answers):
    abstained = 0
    for answer in answers["decisions"]:
        prob, decision = answer.want
        said = answer.said["value"]
        assert said["labels"] == [np.flatnonzero(row).tolist() for row in decision.label_BK]
        assert said["abstained"] == decision.abstained_B.tolist()
        assert said["top"] == decision.top_BM.tolist()
        abstained += sum(said["abstained"])
        for name, of in (("none", "prob_none"), ("exclusive", "prob_none_exclusive"), ("normalized", "prob_normalized")):
            np.testing.assert_allclose(said[name], getattr(outcomes, of)(prob), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(said["score"], outcomes.out_of_scope_score(prob), rtol=1e-12, atol=1e-14)
    assert 0 < abstained < 3 * len(answers["decisions"])


def test_cohorts_have_the_numbers_that_the_graph_knows(answers):
    cohorts = some_cohorts(1)
    for answer in answers["cohorts"]:
        want = tried(cohort_names, answer.want, 7)
        want = want if isinstance(want, str) else cohorts.numbers(want).tolist()
        assert answer.said == ({"error": want, "name": "InputError"} if isinstance(want, str) else {"value": want})


def test_values_are_written_and_numbers_read_as_in_python(answers):
    written, general, read = answers["words"]
    assert written.said == written.want
    assert general.said == general.want
    for text, want, said in zip(FLOATS, read.want, read.said, strict=True):
        got = None if said == "null" else float(said.replace("Infinity", "inf"))
        assert got == want or (got != got and want != want), text


def test_times_are_written_as_strftime_does_and_read_back(answers):
    for answer in answers["written"]:
        for second, (text, read) in zip(SECONDS, answer.said, strict=True):
            moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=second)
            assert text == moment.strftime(answer.want)
            back = datetime.strptime(text, answer.want).replace(tzinfo=timezone.utc)
            assert read == (back - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds()


def test_a_digest_is_the_same_with_and_without_the_browsers_own(answers):
    for answer in answers["sha256"]:
        assert answer.said == [answer.want, answer.want]


def test_what_cannot_be_had_in_a_browser_is_refused_when_the_model_is_loaded(answers):
    said = {answer.want: answer.said["load"] for answer in answers["refused"]}
    assert "the time format '%G-%V' has %G, which a browser's predictor does not read" in said["date"]
    assert "of kind 'sound'; this ovr knows table, text" in said["kind"]


def test_forms_that_a_page_has_beside_those_of_python(answers):
    for answer in answers["forms"]:
        if isinstance(answer.want, str):
            assert answer.want in answer.said["encoded"]["error"]
        else:
            np.testing.assert_array_equal(array(answer.said["encoded"]).reshape(answer.want.shape), answer.want)


@pytest.mark.exhaustive
def test_ten_thousand_batches_are_the_same(tmp_path):
    pairs = [pair for seed in range(1, 6) for pair in random_encoders(seed, 650)]
    for (case, want), said in zip(pairs, run([case for case, _ in pairs], tmp_path), strict=True):
        check_encoded(SimpleNamespace(case=case, want=want, said=said))


@pytest.mark.exhaustive
def test_every_character_makes_the_same_tokens(tmp_path):
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) != "Cn"]
    encoder = HashedText(1 << 24, 24, (1, 1), None)
    rows = [f"a{c}b{c}'c" for c in known]
    (said,) = run([encoder_case(encoder, rows)], tmp_path)
    assert array(said["encoded"]).tobytes() == encoder.encode(rows).tobytes()
