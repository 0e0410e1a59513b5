"""MultiExitBert's forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

TOLERANCE = 1e-5
ENGLISH = [
    "A quiet, moving film about very little.",
    "no",
    "It could have been the best meal of the year, had the kitchen not closed at eight and the waiter not laughed at us.",
]


def batch(tokenizer, texts, pairs=None):
    return tokenizer(texts, pairs, padding=True, return_tensors="pt")


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("pairs", [None, ["Really?", "yes and no", "The food was fine."]])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_depth_equals_bert_model_on_real_weights(minilm, minilm_path, pairs, attention):
    from geep_triton import MultiExitBert

    reference, tokenizer = minilm
    model = MultiExitBert.from_pretrained(minilm_path, attn_implementation=attention)
    inputs = batch(tokenizer, ENGLISH, pairs)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        expected = reference(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == 7
    real = inputs["attention_mask"].bool()
    for ours, theirs in zip(states, expected, strict=True):
        assert difference(ours[real], theirs[real]) <= TOLERANCE


def test_padding_order_and_batch_size_change_nothing(minilm, minilm_path):
    from geep_triton import MultiExitBert

    _, tokenizer = minilm
    model = MultiExitBert.from_pretrained(minilm_path, pooling="mean")
    with torch.no_grad():
        together = model(**batch(tokenizer, ENGLISH), output_exit_logits=True).exit_logits
        reversed_ = model(**batch(tokenizer, ENGLISH[::-1]), output_exit_logits=True).exit_logits
        wider = tokenizer(ENGLISH, padding="max_length", max_length=64, return_tensors="pt")
        padded = model(**wider, output_exit_logits=True).exit_logits
        alone = [model(**batch(tokenizer, [text]), output_exit_logits=True).exit_logits for text in ENGLISH]
    for exit_index, logits in enumerate(together):
        assert difference(logits, reversed_[exit_index].flip(0)) <= TOLERANCE
        assert difference(logits, padded[exit_index]) <= TOLERANCE
        for row, single in enumerate(alone):
            assert difference(logits[row], single[exit_index][0]) <= TOLERANCE


@pytest.mark.parametrize("head", ["attention", "pooler", "linear"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_exit_layer_equals_that_exit_of_the_full_run(make_model, tokenizer, texts, head, pooling):
    model = make_model(head=head, pooling=pooling, exit_layers=[1, 3, 4])
    inputs = batch(tokenizer, texts)
    with torch.no_grad():
        every = model(**inputs, output_exit_logits=True)
        for index, layer in enumerate([1, 3, 4]):
            single = model(**inputs, exit_layer=layer, output_hidden_states=True)
            torch.testing.assert_close(single.logits, every.exit_logits[index])
            assert len(single.hidden_states) == layer + 1
    torch.testing.assert_close(every.logits, every.exit_logits[-1])


def test_shared_logits_are_the_last_layer_on_each_exit(model, tokenizer, texts):
    inputs = batch(tokenizer, texts)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        output = model(**inputs, output_shared_logits=True, output_hidden_states=True)
        assert len(output.shared_logits) == 2  # exits 1 and 2; exit 3 = L-1 is the full model itself
        for layer, logits in zip((1, 2), output.shared_logits, strict=True):
            hidden = output.hidden_states[layer]
            last = model.bert.encoder.layer[3](hidden, model.layer_mask(hidden, mask))
            torch.testing.assert_close(logits, model.heads["4"](last, mask))
            shared = model(**inputs, exit_layer=layer, answer_head="shared").logits
            torch.testing.assert_close(logits, shared)
        at_three = model(**inputs, exit_layer=3, answer_head="shared").logits
    torch.testing.assert_close(at_three, output.logits)


def test_loss_is_the_mean_over_exits_and_trains_every_head(make_model, tokenizer, texts):
    model = make_model(exit_layers=[2, 4]).train()
    inputs, labels = batch(tokenizer, texts), torch.arange(len(texts)) % 3
    model.eval()
    output = model(**inputs, labels=labels, output_exit_logits=True)
    torch.testing.assert_close(output.loss, sum(F.cross_entropy(x, labels) for x in output.exit_logits) / 2)
    only = model(**inputs, labels=labels, exit_layer=2)
    torch.testing.assert_close(only.loss, F.cross_entropy(only.logits, labels))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.heads.parameters())


def test_regression_runs_at_full_and_constant_depth(make_model, tokenizer, texts):
    model = make_model(num_labels=1)
    inputs, targets = batch(tokenizer, texts), torch.rand(len(texts))
    output = model(**inputs, labels=targets, exit_layer=2)
    assert output.logits.shape == (len(texts), 1)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits[:, 0], targets))
    assert model(**inputs).logits.shape == (len(texts), 1)


def test_tuple_output(model, tokenizer, texts):
    inputs = batch(tokenizer, texts)
    (logits,) = model(**inputs, return_dict=False)
    torch.testing.assert_close(logits, model(**inputs).logits)


def test_missing_masks_mean_all_tokens_and_one_segment(model):
    ids = torch.tensor([[2, 7, 13, 3]])
    explicit = model(ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
    torch.testing.assert_close(model(ids).logits, explicit.logits)


def test_gradient_checkpointing_gives_the_same_gradients(make_model, tokenizer, texts):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, head_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch(tokenizer, texts), labels=torch.zeros(len(texts), dtype=torch.int64)).loss.backward()
        gradients.append(model.bert.encoder.layer[0].output.dense.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.tensor([[2, 10_000]])}, "between 0 and .* got 2..10000"),
        ({"input_ids": torch.tensor([[-1, 2]])}, r"got -1..2"),
        ({"input_ids": torch.zeros(1, 65, dtype=torch.int64)}, "at most 64 tokens, got 65"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.int64)}, "at least one token"),
        ({"exit_layer": 0}, "exit_layer must be between 1 and 4, got 0"),
        ({"exit_layer": 5}, "between 1 and 4"),
        ({"exit_layer": 2}, r"2 is not an exit; exit_layers: \[1, 4\]"),
        ({"answer_head": "both"}, "unknown answer_head 'both'; known: shared, student"),
        ({"exit_layer": 1, "output_shared_logits": True}, "needs the full depth"),
    ],
)
def test_bad_arguments_raise(make_model, arguments, message):
    model = make_model(exit_layers=[1, 4])
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": torch.tensor([[2, 3]]), **arguments})
