"""The judgement of answers: one that is another text's is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from bench.serving.questions import bad, batch, mix, pair, single
from bench.serving.truth import Truth, make_truths
from bench.serving.wire import Reply
from geep_triton import Engine
from tests.serving.conftest import serving

EVERY = torch.tensor([[[1.0, -1.0], [2.0, -2.0]], [[3.0, -3.0], [4.0, -4.0]], [[5.0, -5.0], [6.0, -6.0]]])
TRUTH = Truth(["no", "yes"], EVERY[[0, 1, 2], [1, 0, 1]], EVERY)


def reply(*rows: list[float], status: int = 200, batched: bool = False) -> Reply:
    answers = [[{"label": "yes", "score": yes}, {"label": "no", "score": no}] for no, yes in rows]
    return Reply(status, {}, json.dumps(answers if batched else answers[0]).encode())


def test_verdicts():
    one = single("a text", 1)
    assert TRUTH.verdict(one, reply([3.0, -3.0004])) == "right"
    assert TRUTH.verdict(one, reply([4.0, -4.0])) == "moved"
    assert TRUTH.verdict(one, reply([2.0, -2.0])) == "wrong"  # another text's
    assert TRUTH.verdict(one, reply([3.0, -3.002])) == "wrong"
    assert TRUTH.verdict(one, reply([3.0, -3.0], status=424)) == "wrong"
    assert TRUTH.verdict(one, None) == "lost"
    assert TRUTH.verdict(one, Reply(200, {}, b'[{"label": "yes", "score": -3.0}]')) == "wrong"
    both = batch(["a", "b"], 1)
    assert TRUTH.verdict(both, reply([3.0, -3.0], [6.0, -6.0], batched=True)) == "right"
    assert TRUTH.verdict(both, reply([3.0, -3.0], [5.0, -5.0], batched=True)) == "moved"
    assert TRUTH.verdict(both, reply([6.0, -6.0], [3.0, -3.0], batched=True)) == "wrong"
    assert TRUTH.verdict(both, reply([3.0, -3.0], batched=True)) == "wrong"
    refused = bad()[0]
    assert TRUTH.verdict(refused, Reply(422, {}, b"")) == "right"
    assert TRUTH.verdict(refused, Reply(200, {}, b"")) == "wrong"


def test_how_often_another_answer_would_pass():
    assert TRUTH.confusable() == 0
    same = torch.tensor([[1.0, 0.0], [1.0005, 0.0], [2.0, 0.0]])
    assert Truth(["no", "yes"], same, same[:, None]).confusable() == pytest.approx(1 / 3)


def test_a_mix_asks_about_no_text_twice():
    texts = [f"text {number}" for number in range(200)]
    made = mix(texts, 200)
    kinds = [question.kind for question in made.questions]
    assert len(kinds) == 200
    assert [kinds.count(kind) for kind in ("single", "pair", "batch")] == [160, 20, 10]
    asked = [number for question in made.questions for number in question.samples]
    assert sorted(asked) == list(range(len(made.samples)))
    assert len(set(made.samples)) == len(made.samples)
    assert len({question.payload for question in made.questions if question.status == 200}) == 190
    assert kinds != [question.kind for question in mix(texts, 200, seed=1).questions]
    with pytest.raises(ValueError, match="expected 200 texts for 200 requests, got 199"):
        mix(texts[:199], 200)


def test_the_engines_own_answers_are_right_and_are_kept(model, tokenizer, many, tmp_path):
    model.exit_config.policy = "threshold:0.8"
    Engine(model, tokenizer).save_pretrained(tmp_path / "model")
    texts = list(dict.fromkeys(many))[:24]
    samples = [*((text, None) for text in texts), (texts[0], texts[1])]
    truths = make_truths(tmp_path / "model", samples, tmp_path)
    again = make_truths(tmp_path / "model", samples, tmp_path)
    assert torch.equal(truths["exits"].logits, again["exits"].logits)
    assert len(list(tmp_path.glob("truth-*"))) == 1
    assert not torch.equal(truths["exits"].logits, truths["full"].logits)
    questions = [*(single(text, number) for number, text in enumerate(texts)), batch(texts[4:7], 4), pair(texts[:2], 24)]
    for policy, kind in (("threshold:0.8", "exits"), ("full", "full")):
        with serving(Engine(model, tokenizer, policy)) as ask:
            for question in questions:
                status, found = ask("/predict", question.payload.partition(b"\r\n\r\n")[2])
                assert truths[kind].verdict(question, Reply(status, {}, json.dumps(found).encode())) == "right"
