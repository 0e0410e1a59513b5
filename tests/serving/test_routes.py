"""The routes, as clients of text-embeddings-inference call them; true requests to a true server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from geep_triton import Engine
from geep_triton.version import __version__
from tests.serving.conftest import serving


def labels_of(engine: Engine, samples: list) -> list[list[tuple[str, float]]]:
    """For each sample its labels and their probabilities, the likeliest first."""
    found = engine.predict(samples)
    rows = [list(zip(found.id2label.values(), row, strict=True)) for row in found.probabilities.tolist()]
    return [sorted(row, key=lambda label: -label[1]) for row in rows]


def assert_same(answer: list[dict], expected: list[tuple[str, float]]) -> None:
    assert [of["label"] for of in answer] == [label for label, _ in expected]
    assert [of["score"] for of in answer] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert all(of.keys() == {"label", "score"} for of in answer)


def test_a_text_a_pair_and_a_batch(engine, ask, texts):
    first, second = texts[:2]
    status, found = ask("/predict", {"inputs": first})
    assert status == 200
    assert_same(found, labels_of(engine, [first])[0])
    assert sum(of["score"] for of in found) == pytest.approx(1, abs=1e-5)
    _, found = ask("/predict", {"inputs": [first]})  # a list of one text is that text
    assert_same(found, labels_of(engine, [first])[0])
    _, found = ask("/predict", {"inputs": [first, second]})  # and one of two is a pair
    assert_same(found, labels_of(engine, [(first, second)])[0])
    _, found = ask("/predict", {"inputs": [[first], [second, first], [second]]})
    expected = labels_of(engine, [(first, None), (second, first), (second, None)])
    assert len(found) == 3
    for answer, labels in zip(found, expected, strict=True):
        assert_same(answer, labels)
    _, found = ask("/predict", {"inputs": [[first]]})
    assert len(found) == 1
    assert_same(found[0], labels_of(engine, [first])[0])


def test_raw_scores_are_logits(engine, ask, texts):
    _, found = ask("/predict", {"inputs": texts[0], "raw_scores": True})
    assert [of["score"] for of in found] == pytest.approx(
        sorted(engine.predict(texts[0]).logits[0].tolist(), reverse=True), abs=1e-4
    )


def test_label_sets_and_scores_are_sigmoids(make_model, tokenizer, texts):
    for changes in ({"problem_type": "multi_label_classification"}, {"num_labels": 1, "problem_type": "regression"}):
        engine = Engine(make_model(pooling="mean", **changes), tokenizer)
        logits = sorted(engine.predict(texts[0]).logits[0].tolist(), reverse=True)
        with serving(engine) as ask:
            _, found = ask("/predict", {"inputs": texts[0]})
            _, raw = ask("/predict", {"inputs": texts[0], "raw_scores": True})
        assert [of["score"] for of in found] == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-5)
        assert [of["score"] for of in raw] == pytest.approx(logits, abs=1e-4)


def test_forty_requests_at_once_get_their_own_answers(engine, ask, many):
    """Batches of several sizes, of texts and pairs."""
    requests = [[(text, many[-i] if i % 3 == 0 else None) for text in many[i : i + 1 + i % 5]] for i in range(40)]
    bodies = [{"inputs": [[text for text in sample if text is not None] for sample in samples]} for samples in requests]
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda body: ask("/predict", body), bodies))
    assert [status for status, _ in answers] == [200] * 40
    for samples, (_, found) in zip(requests, answers, strict=True):
        assert len(found) == len(samples)
        for answer, labels in zip(found, labels_of(engine, samples), strict=True):
            assert_same(answer, labels)
    assert len(set(engine.predict(many[:40]).exit_layers.tolist())) > 1


LONG = " ".join(["good"] * 100)
SURROGATE = "good \ud800"
BAD = {
    "no JSON": (422, b"{broken", "Validation", "JSON"),
    "no UTF-8": (422, b'{"inputs": "\xff"}', "Validation", "body: no JSON that can be read: not in UTF-8"),
    "too deep": (422, b"[" * 100_000, "Validation", "nested too deeply"),
    "too many digits": (422, b'{"inputs": %s}' % (b"1" * 10_000), "Validation", "too many digits"),
    "where": (422, b'{"inputs": good}', "Validation", "body, character 11: JSON"),
    "many fields": (422, {f"field {i}": 0 for i in range(9)}, "Validation", "; and 5 more"),
    "a long field": (422, {"inputs": "a", "x" * 5000: 0}, "Validation", "x" * 40 + "...: Extra inputs"),
    "another body": (422, ["good"], "Validation", "body: "),
    "no inputs": (422, {}, "Validation", "inputs: Field required"),
    "a number": (422, {"inputs": 3}, "Validation", 'inputs: expected "a text", ["a text", "its pair"], or a batch'),
    "nothing": (422, {"inputs": []}, "Validation", "inputs: expected"),
    "three texts": (422, {"inputs": ["a", "b", "c"]}, "Validation", "inputs: expected"),
    "a triple": (422, {"inputs": [["a"], ["a", "b", "c"]]}, "Validation", "for one input"),
    "mixed": (422, {"inputs": [["a"], "b"]}, "Validation", "for one input"),
    "a number in a pair": (422, {"inputs": ["a", 3]}, "Validation", "for one input"),
    "no bool": (422, {"inputs": "a", "truncate": "yes"}, "Validation", "truncate: "),
    "a field that nobody reads": (422, {"inputs": "a", "parameters": {}}, "Validation", "parameters: "),
    "empty": (400, {"inputs": [["good"], ["good", " "]]}, "Empty", "input 1 has an empty text"),
    "too long": (413, {"inputs": [["good"], [LONG]]}, "Validation", 'input 1 has 102 tokens, more than the 64 allowed; "trunc'),
    "no text": (422, {"inputs": SURROGATE}, "Tokenizer", "is not valid Unicode"),
    "no token": (422, {"inputs": "\x00"}, "Tokenizer", "without any token"),
    "a side of no Unicode": (422, b'{"inputs": "a", "truncation_direction": "\\ud800"}', "Tokenizer", "cuts texts on the r"),
    "another side": (422, {"inputs": "a", "truncation_direction": "Left"}, "Tokenizer", "cuts texts on the right"),
}  # fmt: skip


def test_what_cannot_be_answered(ask, texts):
    for status, body, kind, message in BAD.values():
        found, answer = ask("/predict", body)
        assert (found, answer["error_type"]) == (status, kind), answer
        assert message in answer["error"], answer
        assert set(answer) == {"error", "error_type"}
    assert ask("/predict", {"inputs": texts[0]})[0] == 200
    assert ask("/nothing") == (404, {"error": "Not Found", "error_type": "Validation"})
    assert ask("/predict") == (405, {"error": "Method Not Allowed", "error_type": "Validation"})


def test_bad_requests_that_are_read_together_with_good_ones(engine, ask, many):
    """Each is refused by itself, and names its own input."""
    bodies = []
    for number, text in enumerate(many[:60]):
        inputs = [[text], [LONG if number % 3 == 0 else "\x00" if number % 3 == 1 else text]]
        bodies.append({"inputs": inputs, "truncate": True} if number % 4 == 0 else {"inputs": inputs})
    expected = labels_of(engine, many[:60])
    with ThreadPoolExecutor(60) as clients:
        answers = list(clients.map(lambda body: ask("/predict", body), bodies))
    for number, (status, found) in enumerate(answers):
        if number % 3 == 1:
            assert (status, found["error"]) == (422, "input 1 has a text without any token")
        elif number % 3 == 0 and number % 4:
            assert status == 413
            assert found["error"].startswith("input 1 has 102 tokens")
        else:
            assert status == 200
            assert_same(found[0], expected[number])


def test_errors_do_not_repeat_texts(ask):
    bodies = [
        {"inputs": [["my secret"], ["my secret", "", "b"]]},
        {"inputs": ["my secret", LONG]},
        {"query": "my secret"},
        {"inputs": "my secret \ud800"},
    ]
    for body in bodies:
        assert "secret" not in json.dumps(ask("/predict", body)[1])


def test_longer_texts_are_cut_where_it_is_asked_for(model, tokenizer):
    for as_started in (None, True):
        engine = Engine(model, tokenizer, "threshold:0.8", max_length=16, truncation=as_started)
        with serving(engine) as ask:
            assert ask("/predict", {"inputs": LONG, "truncate": False})[0] == 413
            assert ask("/predict", {"inputs": LONG})[0] == (200 if as_started else 413)
            body = {"inputs": LONG, "truncate": True, "truncation_direction": "Right"}
            status, found = ask("/predict", body)
        assert status == 200
        assert_same(found, labels_of(Engine(model, tokenizer, "threshold:0.8", max_length=16, truncation=True), [LONG])[0])


def test_rerank(reranker, texts):
    expected = reranker.rank("the film", texts)
    with serving(reranker) as ask:
        status, found = ask("/rerank", {"query": "the film", "texts": texts})
        _, raw = ask("/rerank", {"query": "the film", "texts": texts, "raw_scores": True, "return_text": True})
        _, best = ask("/rerank", {"query": "the film", "texts": texts, "raw_scores": True, "top_k": 2})
        refused = {
            "empty": ask("/rerank", {"query": "the film", "texts": []}),
            "an empty text": ask("/rerank", {"query": "the film", "texts": ["good", ""]}),
            "too long": ask("/rerank", {"query": "the film", "texts": ["good", LONG]}),
            "a text": ask("/rerank", {"query": "the film", "texts": "good"}),
            "no top": ask("/rerank", {"query": "the film", "texts": ["good"], "top_k": 0}),
        }
        cut = ask("/rerank", {"query": "the film", "texts": ["good", LONG], "truncate": True})
    assert status == 200
    order = expected.order.tolist()
    assert [of["index"] for of in found] == [of["index"] for of in raw] == order
    assert all(of.keys() == {"index", "score"} for of in found)
    assert [of["score"] for of in raw] == pytest.approx([float(expected.logits[index]) for index in order], abs=1e-4)
    assert [of["score"] for of in found] == pytest.approx(
        torch.tensor([of["score"] for of in raw]).sigmoid().tolist(), abs=1e-4
    )
    assert [of["text"] for of in raw] == [texts[index] for index in order]
    few = reranker.rank("the film", texts, 2)
    assert few.mean_layers < 4
    assert [of["index"] for of in best] == few.order.tolist()
    assert len(cut[1]) == 2
    kinds = {name: (status, answer["error_type"]) for name, (status, answer) in refused.items()}
    assert kinds == {
        "empty": (400, "Empty"), "an empty text": (400, "Empty"), "too long": (413, "Validation"),
        "a text": (422, "Validation"), "no top": (422, "Validation"),
    }  # fmt: skip
    assert "input 1 has 105 tokens" in refused["too long"][1]["error"]


def test_only_a_reranker_ranks(ask):
    assert ask("/rerank", {"query": "a", "texts": ["b"]}) == (
        424,
        {"error": "the model is not a reranker, which has one label: POST /predict instead", "error_type": "Backend"},
    )


def test_information(calibrated, tokenizer):
    engine, calibration = calibrated
    engine = Engine(engine.model, tokenizer)
    with serving(engine) as ask:
        _, found = ask("/info")
    assert found["version"] == __version__
    assert found["policy"] == str(calibration.chosen.policy)
    assert found["promise"] == {"agreement": 0.8, "class_recall": {}}
    assert found["model_dtype"] == "float32"
    assert found["model_type"]["classifier"]["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert (found["max_input_length"], found["auto_truncate"]) == (64, False)
    assert found["device"] == "cpu"


def test_weights_that_change_are_told(engine, ask, texts):
    """What fails in the engine is 424, and the server says of itself that it fails."""
    with torch.no_grad():
        engine.model.heads["1"].classifier.weight.add_(1)
    status, answer = ask("/predict", {"inputs": texts[0]})
    assert (status, answer["error_type"]) == (424, "Backend")
    status, answer = ask("/health")
    assert (status, answer["error_type"]) == (503, "Unhealthy")
