"""What was encoded before is answered as its texts are."""

from __future__ import annotations

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.tokens.ragged import Tokens

LONG = " ".join(["good"] * 100)


@pytest.mark.parametrize("window", [3, 4096])
def test_tokens_are_answered_as_their_texts(model, tokenizer, many, window):
    engine = Engine(model, tokenizer, "threshold:0.8", window=window)
    samples = [(text, many[-i] if i % 3 == 0 else None) for i, text in enumerate(many[:20], 1)]
    expected, found = engine.predict(samples), engine.predict(engine.encode(samples))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    assert found.exit_layers.tolist() == expected.exit_layers.tolist()
    joined = Tokens.concatenate([engine.encode(samples[:7]), engine.encode(samples[7:])])
    torch.testing.assert_close(engine.predict(joined).logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(engine.every_exit(joined).logits, engine.every_exit(samples).logits, rtol=0, atol=1e-6)


def test_what_is_too_long_is_cut_where_it_is_asked_for(model, tokenizer):
    engine = Engine(model, tokenizer, max_length=16)
    with pytest.raises(ValueError, match=r"sample 1 has 102 tokens, more than the 16 allowed"):
        engine.encode(["good", LONG])
    tokens = engine.encode(["good", LONG], truncation=True)
    assert tokens.lengths.tolist() == [3, 16]
    assert engine.predict(tokens).cut.tolist() == [False, True]
    cutting = Engine(model, tokenizer, max_length=16, truncation=True)
    with pytest.raises(ValueError, match="more than the 16 allowed"):
        cutting.encode([LONG], truncation=False)


def test_tokens_that_do_not_fit_are_refused(model, tokenizer):
    engine = Engine(model, tokenizer, max_length=16)
    with pytest.raises(ValueError, match="sample 1 has 64 tokens, more than the 16 allowed"):
        engine.predict(Engine(model, tokenizer, max_length=64, truncation=True).encode(["good", LONG]))
    with pytest.raises(ValueError, match="sample 0 has token id 999999, outside the model's vocabulary"):
        engine.predict(Tokens.from_lists([[2, 999999, 3]]))
    with pytest.raises(ValueError, match="sample 0 has segment id 7, outside the model's 2"):
        engine.predict(Tokens.from_lists([[2, 5, 3]], [[0, 7, 0]]))
    with pytest.raises(ValueError, match="expected at least one text, got none"):
        engine.predict(Tokens.from_lists([]))
    with pytest.raises(ValueError, match="expected at least one text, got none"):
        engine.encode([])


def test_groups_are_ranked_as_their_texts(make_model, tokenizer, many):
    engine = Engine(make_model(num_labels=1, problem_type="regression"), tokenizer, window=8)
    groups = [("the film", many[:5]), ("a soup", many[5:6]), ("nothing", []), ("the book", many[6:20])]
    encoded = [engine.encode_group(*group) for group in groups]
    mixed = [group if number % 2 else encoded[number] for number, group in enumerate(groups)]
    for given in (encoded, mixed):
        for expected, found in zip(engine.rank_many(groups), engine.rank_many(given, return_documents=True), strict=True):
            assert found.order.tolist() == expected.order.tolist()
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    assert found.documents == groups[-1][1]
    cut = engine.encode_group("the film", ["good", LONG], truncation=True)
    assert [ranking.truncated for ranking in engine.rank_many([cut])] == [1]
    short = Engine(engine.model, tokenizer, max_length=16)
    with pytest.raises(ValueError, match="candidate 1 of query 1 has 64 tokens, more than the 16 allowed"):
        list(short.rank_many([("the film", ["good"]), cut]))


def test_expected_layers(model, tokenizer, many):
    engine = Engine(model, tokenizer)
    tokens = engine.encode(many)
    assert engine.expected_layers(tokens).tolist() == [4] * len(many)
    assert engine.with_policy("constant:2").expected_layers(tokens).tolist() == [2] * len(many)
    by_score = engine.with_policy("threshold:0.8")
    assert by_score.expected_layers(tokens).tolist() == [4] * len(many)  # nothing is known of them without a table
    model.exit_table = build_exit_table(model, tokenizer, many, threshold=0.8)
    for text in ("predicted", "predicted:0.9"):
        by_table = engine.with_policy(text)
        assert by_table.expected_layers(tokens).tolist() == by_table.predict(tokens).exit_layers.tolist()
    expected = by_score.expected_layers(tokens)
    assert len(set(expected.tolist())) > 1
    assert expected.tolist() == model.exit_table.predict(tokens, "mean").exits.tolist()
    later = engine.with_policy("constant:3+threshold:0.8").expected_layers(tokens)
    assert later.tolist() == expected.clamp(min=3).tolist()


def test_tokens_are_split_into_parts(model, tokenizer, many):
    engine = Engine(model, tokenizer, max_length=16, truncation=True)
    tokens = engine.encode([*many[:4], LONG, (many[5], None)])
    parts = tokens.split([1, 0, 3, 2])
    assert [len(part) for part in parts] == [1, 0, 3, 2]
    assert [part.truncated for part in parts] == [0, 0, 0, 1]
    torch.testing.assert_close(Tokens.concatenate(parts).ids, tokens.ids)
    pairs = engine.encode([("good", "bad"), "awful"])
    assert [part.type_ids.tolist() for part in pairs.split([1, 1])] == [[0, 0, 0, 1, 1], [0, 0, 0]]
    assert parts[3].offsets.tolist() == [0, 16, 16 + int(tokens.lengths[5])]
    with pytest.raises(ValueError, match="sizes must sum to 6, got 5"):
        tokens.split([5])
