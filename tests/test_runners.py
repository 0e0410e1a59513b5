"""Every runner gives the answers of PyTorch's float32, in each dtype, under each policy, with gates and planned paths."""

from __future__ import annotations

import shutil

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.graphed import GraphsRunner
from geep_triton.runners.make import RUNNERS, make_runner
from geep_triton.runners.packed import Offsets, PackedRunner, PackedStates, attend
from geep_triton.runners.padded import PaddedRunner, PaddedStates, Padding
from geep_triton.runners.parts import Parts

# Largest difference of a probability from float32's on the tests' random models.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.004, "int8": 0.1}
POLICIES = ["full", "constant:2", "threshold:0.8", "patience:1", "predicted:mean", "predicted:0.05+threshold:0.8"]


def repeated(work):
    """Stands in for a CUDA graph."""
    work()
    return work


def make(model, name, dtype):
    """A runner; those for a GPU run here, too, where what only a GPU has is stood in for."""
    parts = Parts.copied(model, getattr(torch, dtype, None))
    if name == "packed":
        return PackedRunner(model, parts, dtype)
    if name == "graphs":
        return GraphsRunner(model, parts, dtype, record=repeated)
    if name == "compiled":
        return CompiledRunner(model, parts, dtype, backend=lambda graph, example_inputs: graph.forward)
    return make_runner(model, name, dtype)


FORMS = [(name, dtype) for name, devices in RUNNERS.items() for dtype in sorted({*sum(devices.values(), ())})]
FORMS += [("packed", "float32")]


def test_every_form_of_the_table_is_tested():
    assert {dtype for _, dtype in FORMS} == set(TOLERANCES)
    assert {name for name, _ in FORMS} == set(RUNNERS)


@pytest.mark.parametrize(("name", "dtype"), FORMS)
@pytest.mark.parametrize("skipping", ["never", "gates", "planned"])
def test_answers_are_those_of_torch_in_float32(make_model, tokenizer, texts, name, dtype, skipping):
    """Under each policy. Where rounding moves an exit or a gate the answer is another's: those samples are few, and compared at
    their exit."""
    model = make_model(**({} if skipping == "never" else {"skip_gate": "mean", "skip_gate_bias": 0.0}))
    learn = ["skips"] if skipping == "planned" else []
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False, learn=learn)
    plain = Engine(model, tokenizer, f"full+skip:{skipping}", token_budget=40)
    other = Engine(model, tokenizer, plain.policy, runner=make(model, name, dtype), token_budget=40)
    assert (other.runner.name, other.dtype) == (name, dtype)
    record = other.every_exit(texts)
    for policy in POLICIES:
        expected, got = (engine.with_policy(f"{policy}+skip:{skipping}").predict(texts) for engine in (plain, other))
        moved = got.exit_layers != expected.exit_layers
        if expected.skipped is not None:
            moved |= (got.skipped != expected.skipped).any(1)
        assert int(moved.sum()) <= (0 if dtype == "float32" else len(texts) // 2), policy
        kept = got.probabilities[~moved], expected.probabilities[~moved]
        torch.testing.assert_close(*kept, atol=TOLERANCES[dtype], rtol=0)
        if skipping != "planned":
            at = torch.searchsorted(torch.tensor(model.config.exit_layers), got.exit_layers)
            own = record.logits[torch.arange(len(texts)), at].softmax(-1)
            torch.testing.assert_close(got.probabilities, own, atol=TOLERANCES[dtype], rtol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_layers(model, tokenizer, texts, dtype):
    expected = Engine(model, tokenizer, "threshold:0.8", dtype="float32").predict(texts)
    engine = Engine(model, tokenizer, "threshold:0.8", runner="compiled", dtype=dtype, token_budget=40)
    assert engine.runner.compile_seconds > 0
    got = engine.predict(texts)
    same = got.exit_layers == expected.exit_layers
    assert int(same.sum()) >= len(texts) // 2
    torch.testing.assert_close(got.probabilities[same], expected.probabilities[same], atol=TOLERANCES[dtype], rtol=0)


LENGTHS = [5, 1, 3, 5, 2]


def both(model):
    """The same samples as padded and as packed states, of runners in float32."""
    lengths = torch.tensor(LENGTHS)
    mask = (torch.arange(5) < lengths[:, None]).long()
    hidden = torch.randn(len(LENGTHS), 5, model.config.hidden_size)
    packed = PackedStates(hidden[mask.bool()], Offsets(lengths, hidden.device))
    runners = PaddedRunner(model), PackedRunner(model, Parts.copied(model), "float32")
    return *runners, PaddedStates(hidden, Padding(lengths, mask)), packed


def assert_same(padded, packed):
    assert padded.lengths.tolist() == packed.lengths.tolist()
    assert len(padded) == len(packed)
    real = padded.padding.attention_mask.bool()
    torch.testing.assert_close(packed.hidden, padded.hidden[real], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_states_are_taken_joined_and_put_alike(make_model):
    """Whatever the engine does with states is the same with padding and without."""
    model = make_model(skip_gate="mean")
    padded, packed, there, here = both(model)
    assert (there.tokens, here.tokens) == (25, 16)
    assert there.longest == here.longest == 5
    assert there.total(lambda tokens: tokens) == 25
    assert here.total(lambda tokens: tokens) == 16
    for order in ([2, 4], [1], [0, 1, 2, 3, 4], slice(1, 3), slice(4, None)):
        host = order if isinstance(order, slice) else torch.tensor(order)
        taken = [runner.take(states, host, states.lengths[host]) for runner, states in ((padded, there), (packed, here))]
        assert_same(*taken)
        assert taken[0].longest == int(taken[0].lengths.max())
        ran = padded.layers(2, 3, taken[0]), packed.layers(2, 3, taken[1])
        assert_same(*ran)
        if not isinstance(order, slice):
            assert_same(padded.put(there, host, ran[0]), packed.put(here, host, ran[1]))
        assert_same(padded.join([ran[0], there]), packed.join([ran[1], here]))
        assert_same(padded.join([ran[0]]), packed.join([ran[1]]))
    flags = torch.tensor([True, False, True, False, False])
    changed = padded.layers(1, 1, there), packed.layers(1, 1, here)
    assert_same(padded.choose(flags, there, changed[0]), packed.choose(flags, here, changed[1]))
    assert_same(padded.layers(3, 2, there), packed.layers(3, 2, here))
    for layer in model.config.exit_layers:
        torch.testing.assert_close(packed.logits(layer, here), padded.logits(layer, there), atol=1e-5, rtol=0)
        gates = packed.gate(layer, here), padded.gate(layer, there)
        torch.testing.assert_close(gates[0].soft, gates[1].soft, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["attention", "pooler", "linear"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.inference_mode()
def test_heads_without_padding(make_model, head, pooling):
    padded, packed, there, here = both(make_model(head=head, pooling=pooling))
    for layer in (1, 4):
        torch.testing.assert_close(packed.logits(layer, here), padded.logits(layer, there), atol=1e-5, rtol=0)


def test_samples_attend_to_themselves_alone():
    query, key, value = (torch.randn(8, 3, 4) for _ in range(3))
    together = attend(query, key, value, Offsets(torch.tensor([5, 1, 2]), query.device), 0.5)
    alone = attend(query[:5], key[:5], value[:5], Offsets(torch.tensor([5]), query.device), 0.5)
    assert together.shape == (8, 3, 4)
    torch.testing.assert_close(together[:5], alone)


def test_what_stands_in_the_padding_is_never_read(model):
    padded, _, there, _ = both(model)
    spoiled = torch.where(there.padding.attention_mask.bool()[:, :, None], there.hidden, 1e4)
    with torch.inference_mode():
        expected = padded.layers(1, 4, there)
        got = padded.layers(1, 4, PaddedStates(spoiled, there.padding))
    real = there.padding.attention_mask.bool()
    torch.testing.assert_close(got.hidden[real], expected.hidden[real], atol=1e-5, rtol=0)


def test_a_runner_without_padding_needs_sdpa(make_model):
    eager = make_model()
    eager.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="runner 'packed' needs attn_implementation 'sdpa', got 'eager'"):
        PackedRunner(eager, Parts.copied(eager), "float32")


def test_a_runner_of_another_model_is_refused(make_model, tokenizer):
    with pytest.raises(ValueError, match="runner must be a name, or a runner of this model"):
        Engine(make_model(), tokenizer, runner=PaddedRunner(make_model()))
    model = make_model()
    with pytest.raises(ValueError, match="in dtype int8, got 'torch'"):
        Engine(model, tokenizer, runner=PaddedRunner(model), dtype="int8")
    for wrong in (None, 3, model):
        with pytest.raises((TypeError, ValueError), match="runner must be|unknown runner"):
            Engine(model, tokenizer, runner=wrong)
