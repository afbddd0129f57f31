"""From a file of texts to answers: trained, exported and asked with texts, by the commands that a user gives."""

import csv
import json

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.input.text import HashedText

WORDS = {"cards/lost": "lost stolen missing", "cards/new": "order another new", "rates": "exchange rate of currency"}
QUICK = [
    "data=text",
    "report=false",
    "backbone=bag",
    "backbone.width=16",
    "data.num_tokens=4096",
    "data.max_tokens=64",
    "~callback.progress",
    "batch_size=8",
    "optimizer.lr=0.02",
]


def some_texts(num_rows=90):
    rng = np.random.default_rng(0)
    ids = sorted(WORDS)
    for n in range(num_rows):
        words = WORDS[ids[n % 3]].split()
        yield f"my {words[rng.integers(len(words))]}, {words[rng.integers(len(words))]}\n{n}?", ids[n % 3]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_label_a_text(here):
    rows = list(some_texts())
    with (here / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "topic"), *rows])
    assert main(["train", *QUICK, "data.path=texts.csv", "data.label=topic", "trainer.max_epochs=8", "hydra.run.dir=run"]) == 0
    bundle = open_bundle(here / "run" / "bundle")
    assert [(spec.id, spec.parent) for spec in bundle.taxonomy] == [("cards/lost", "cards"), ("cards/new", "cards"), ("rates", "")]
    assert bundle.input.encoder == HashedText(4096, 64).to_json()
    edge = EdgePredictor(bundle.path)
    texts = [text for text, _ in rows]
    whole = edge.predict(texts)
    assert np.mean([list(labels) == [topic] for labels, (_, topic) in zip(whole.labels(), rows, strict=True)]) > 0.9
    for size in (1, 7):  # the same bytes, whatever comes with a text
        parts = [edge.predict_proba(texts[start : start + size]) for start in range(0, len(texts), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole.prob_BK)
    assert main(["predict", "bundle=run/bundle", "input=texts.csv", "drop=[topic]", "output=answers.jsonl"]) == 0
    answers = [json.loads(line) for line in (here / "answers.jsonl").read_text().splitlines()]
    assert [answer["labels"] for answer in answers] == list(map(list, whole.labels()))


def test_many_labels_a_text(here):
    rows = [{"body": text, "topics": [topic, "card"] if "card" in topic else [topic]} for text, topic in some_texts()]
    (here / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = ["data.text=body", "data.label=topics", "data.source.rule.many=true", "decision=multilabel", "backbone.hidden=[8]"]
    assert main(["train", *QUICK, *how, "data.path=texts.jsonl", "trainer.max_epochs=8", "hydra.run.dir=run"]) == 0
    edge = EdgePredictor(here / "run" / "bundle")
    decided = edge.predict([row["body"] for row in rows]).labels()
    assert np.mean([set(labels) == set(row["topics"]) for labels, row in zip(decided, rows, strict=True)]) > 0.9
