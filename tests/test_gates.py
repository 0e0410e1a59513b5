"""Skip gates: against formulas written out, in the forward pass, saved and loaded."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from geep_triton import MultiExitBert
from tests.conftest import tiny_config

KINDS = ["attention", "mean"]


def gated(kind="attention", bias=0.0, spread=4.0, **changes) -> MultiExitBert:
    """A tiny model whose gates really choose: some samples skip, others do not."""
    torch.manual_seed(1)
    model = MultiExitBert(tiny_config(pooling="mean", skip_gate=kind, skip_gate_size=8, skip_gate_bias=bias, **changes)).eval()
    with torch.no_grad():
        for gate in model.gates.values():
            gate.output.weight.mul_(spread)
    return model


def batch(tokenizer, texts):
    return tokenizer(texts, padding=True, return_tensors="pt")


def mean_gate_by_hand(gate, hidden, length):
    mean = [sum(float(hidden[t, d]) for t in range(length)) / length for d in range(hidden.shape[1])]
    return sum(w * x for w, x in zip(gate.output.weight[0].tolist(), mean, strict=True)) + float(gate.output.bias)


def attention_gate_by_hand(gate, hidden, length):
    """One sample without its padding; one attention head at a time."""
    features = torch.tanh(gate.reduce(hidden[:length]))
    query, (key, value) = gate.query(features[0]), gate.key_value(features).chunk(2, dim=-1)
    size = features.shape[1] // gate.num_heads
    attended = []
    for head in range(gate.num_heads):
        part = slice(head * size, (head + 1) * size)
        weights = ((key[:, part] @ query[part]) / math.sqrt(size)).softmax(0)
        attended.append(weights @ value[:, part])
    return float(gate.output(gate.dense(torch.cat(attended))))


@pytest.mark.parametrize(("kind", "by_hand"), [("mean", mean_gate_by_hand), ("attention", attention_gate_by_hand)])
def test_gate_by_hand_and_padding_never_reaches_it(kind, by_hand):
    gate = gated(kind).gates["2"]
    hidden, lengths = torch.randn(5, 7, 32), [7, 4, 1, 2, 7]
    mask = torch.tensor([[1] * n + [0] * (7 - n) for n in lengths])
    hidden[mask == 0] = 1e4
    with torch.no_grad():
        result = gate(hidden, mask, 0.5)
        logits = [by_hand(gate, hidden[row], length) for row, length in enumerate(lengths)]
    expected = [1 / (1 + math.exp(-logit)) for logit in logits]
    torch.testing.assert_close(result.soft, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert result.hard.tolist() == [float(value >= 0.5) for value in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_gate_runs_everything(kind, tokenizer, texts):
    model = MultiExitBert(tiny_config(skip_gate=kind, initializer_range=0.02)).eval()
    with torch.no_grad():
        output = model(**batch(tokenizer, texts), output_gates=True)
    assert len(output.gates) == len(output.skips) == 4
    assert not torch.stack(output.skips).any()
    assert torch.stack(output.gates).max() < 0.3


def test_a_model_without_gates_is_untouched(make_model, tokenizer, texts):
    """Neither tensors nor answers differ; and gates that are switched off change no bit."""
    plain, with_gates = make_model(), gated()
    assert not any(name.startswith("gates") for name in plain.state_dict())
    with_gates.load_state_dict(plain.state_dict(), strict=False)
    with_gates.config.pooling = plain.config.pooling
    for head in with_gates.heads.values():
        head.pooling = plain.config.pooling
    inputs = batch(tokenizer, texts)
    with torch.no_grad():
        expected = plain(**inputs, output_exit_logits=True, output_hidden_states=True)
        result = with_gates(**inputs, output_exit_logits=True, output_hidden_states=True, gating="none")
    assert expected.gates is None
    assert expected.layer_outputs is None
    for name in ("exit_logits", "hidden_states"):
        for ours, theirs in zip(result[name], expected[name], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gating", ["soft", "hard"])
@pytest.mark.parametrize("skip_layers", [None, [2, 3]])
def test_forward_by_hand(tokenizer, texts, kind, gating, skip_layers):
    model = gated(kind, skip_layers=skip_layers)
    inputs = batch(tokenizer, texts)
    skipped = 0
    with torch.no_grad():
        result = model(
            **inputs, gating=gating, output_gates=True, output_exit_logits=True, output_hidden_states=True,
            output_layer_outputs=True,
        )  # fmt: skip
        default = model(**inputs)
        for row, text in enumerate(texts):
            alone = batch(tokenizer, [text])
            mask, length = alone["attention_mask"], alone["input_ids"].shape[1]
            hidden, gates = model.embed(alone["input_ids"]), []
            for layer in range(1, 5):
                output = model.bert.encoder.layer[layer - 1](hidden, None)
                g = 0.0
                if layer in (skip_layers or range(1, 5)):
                    soft = model.gates[str(layer)](hidden, mask, 0.5).soft
                    gates.append(float(soft))
                    g = float(soft >= 0.5) if gating == "hard" else float(soft)
                    assert bool(result.skips[len(gates) - 1][row]) == (gates[-1] >= 0.5)
                    skipped += gates[-1] >= 0.5
                hidden = (1 - g) * output + g * hidden
                torch.testing.assert_close(result.layer_outputs[layer - 1][row, :length], output[0], atol=1e-5, rtol=0)
                torch.testing.assert_close(result.hidden_states[layer][row, :length], hidden[0], atol=1e-5, rtol=0)
                logits = model.heads[str(layer)](hidden if layer == 4 else output, mask)[0]  # an early head reads its layer
                torch.testing.assert_close(result.exit_logits[layer - 1][row], logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(torch.stack([gate[row] for gate in result.gates]), torch.tensor(gates))
    assert 0 < skipped < len(texts) * len(gates)
    if gating == "hard":
        assert torch.equal(default.logits, result.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_gates_learn_by_the_soft_gradient(tokenizer, texts, kind):
    model = gated(kind)
    loss = model(**batch(tokenizer, texts), labels=torch.zeros(len(texts), dtype=torch.int64)).loss
    loss.backward()
    for name, parameter in model.gates.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(tmp_path, tokenizer, texts, kind):
    model = gated(kind, skip_layers=[1, 3], skip_threshold=0.4)
    model.save_pretrained(tmp_path)
    loaded, info = MultiExitBert.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert (loaded.config.skip_layers, loaded.config.skip_threshold) == ([1, 3], 0.4)
    assert {name.split(".")[1] for name in load_file(tmp_path / "model.safetensors") if name.startswith("gates")} == {"1", "3"}
    with torch.no_grad():
        inputs = batch(tokenizer, texts)
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_gates_are_added_to_a_saved_model_as_new(make_model, tmp_path, caplog):
    make_model().save_pretrained(tmp_path)
    model = MultiExitBert.from_pretrained(tmp_path, skip_gate="mean", skip_layers=[2], skip_gate_bias=-5.0)
    assert model.gates["2"].output.bias.item() == -5.0
    assert "skip gates at layers [2] are new and untrained" in caplog.text
    assert "exit heads" not in caplog.text


def test_gates_of_another_kind_or_lost_are_refused(tmp_path):
    gated("mean").save_pretrained(tmp_path)
    for changes, message in (
        ({"skip_gate": "attention"}, "skip gates were trained with skip_gate='mean', got 'attention'"),
        ({"skip_gate": None}, "skip gates were trained with skip_gate='mean', got None"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiExitBert.from_pretrained(tmp_path, **changes)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["gates.2.output.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors are missing.*gates.2.output.weight"):
        MultiExitBert.from_pretrained(tmp_path)


def test_calibration_of_other_gates_is_left_out(tmp_path, caplog):
    model = gated()
    model.exit_config.calibration, model.exit_config.policy = {"promise": ["agreement", 0.9]}, "threshold:0.3"
    model.save_pretrained(tmp_path)
    assert MultiExitBert.from_pretrained(tmp_path, skip_threshold=0.5).exit_config.policy == "threshold:0.3"
    assert MultiExitBert.from_pretrained(tmp_path, skip_threshold=0.7).exit_config.policy is None
    assert "exits, gates or the kind of answers changed" in caplog.text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"skip_gate": "random"}, ValueError, "unknown skip_gate 'random'; known: attention, mean"),
        ({"skip_layers": [1]}, ValueError, "skip_layers need a skip_gate"),
        ({"skip_gate": "mean", "skip_layers": []}, ValueError, "at least one layer"),
        ({"skip_gate": "mean", "skip_layers": [5]}, ValueError, "each of skip_layers must be between 1 and 4, got 5"),
        ({"skip_gate": "mean", "skip_layers": [2, 2]}, ValueError, "must not repeat a layer"),
        ({"skip_gate": "mean", "skip_layers": 2}, TypeError, "skip_layers must be a list of ints, got 2"),
        ({"skip_gate": "attention", "skip_gate_size": 9}, ValueError, "multiple of skip_gate_attention_heads"),
        ({"skip_gate": "mean", "skip_threshold": 1.5}, ValueError, "skip_threshold must be between 0.0 and 1.0"),
        ({"skip_gate": "mean", "skip_gate_bias": "low"}, TypeError, "skip_gate_bias must be a number"),
    ],
)
def test_bad_configurations(changes, error, message):
    with pytest.raises(error, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize("arguments", [{"gating": "hard"}, {"gating": "soft"}, {"output_gates": True}])
def test_gates_asked_of_a_model_without(model, tokenizer, texts, arguments):
    with pytest.raises(ValueError, match="this model has no skip gates: load it with skip_gate="):
        model(**batch(tokenizer, texts), **arguments)
    with pytest.raises(ValueError, match="unknown gating 'maybe'; known: hard, none, soft"):
        gated()(**batch(tokenizer, texts), gating="maybe")
