"""Every runner gives the answers of PyTorch's float32, in each dtype, under each policy, with gates and planned paths."""

from __future__ import annotations

import shutil

import pytest
import torch

from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.graphed import GraphsRunner
from geep_triton.runners.make import RUNNERS, make_runner
from geep_triton.runners.packed import Offsets, PackedRunner, PackedStates, attend
from geep_triton.runners.padded import PaddedRunner, PaddedStates, Padding
from geep_triton.runners.parts import Parts
from tests.conftest import tiny_config
from tests.int8 import quantized

# Largest difference of a probability from float32's on the tests' random models. Their logits are doubled, and so is rounding.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.04, "float16": 0.008, "int8": 0.2}
# How many of the eight texts may leave or skip elsewhere, under one policy. CPUs round differently.
MOVED = {"float32": 0, "bfloat16": 2, "float16": 1, "int8": 3}
THRESHOLD = 0.875
SAME_FOR_ALL = ("full", "constant:2", "patience:1", "predicted:mean")  # of some of the models
POLICIES = [
    *("full", "constant:2", "threshold:0.875", "threshold:0.875,regroup=always", "threshold:0.875,regroup=never"),
    *("patience:1", "predicted:mean", "predicted:mean,values=learned", "allocated:0.05", "predicted:0.05+threshold:0.875"),
    *("risk:0.45", "planned:1,price=0.15", "planned:1,price=0.15,regroup=always"),
]


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


class Plain:
    """PyTorch in float32, its answers under each policy, and each sample's answer alone."""

    def __init__(self, skipping, tokenizer, texts):
        torch.manual_seed(1)
        gates = {} if skipping == "never" else {"skip_gate": "mean", "skip_gate_bias": 0.0}
        self.model = model = MultiExitBert(tiny_config(pooling="mean", **gates)).eval()
        with torch.no_grad():  # or all would be unsure
            for head in model.heads.values():
                head.classifier.weight.mul_(2)
        learn = ["agreement", "exits", "forecasts", *(["skips"] if skipping == "planned" else [])]
        model.exit_table = build_exit_table(model, tokenizer, texts * 3, THRESHOLD, progress=False, learn=learn)
        quantized(model, tokenizer, texts)
        self.skipping = f"skip:{skipping}"
        self.engine = Engine(model, tokenizer, f"full+{self.skipping}", token_budget=40)
        tokens = self.engine.every_exit(texts).tokens
        self.ids = tokens.ids.split(tokens.lengths.tolist())
        self.expected = {policy: self.engine.with_policy(f"{policy}+{self.skipping}").predict(texts) for policy in POLICIES}

    @torch.inference_mode()
    def alone(self, index, layer, skipped):
        """Probabilities [C] of one sample at `layer`, after the layers that it did not skip."""
        ids = self.ids[index][None]
        hidden, mask = self.model.embed(ids), torch.ones_like(ids)
        for number in sorted(set(range(1, layer + 1)) - skipped):
            hidden = self.model.run_layer(number, hidden, None)
        return self.model.exit_logits(layer, hidden, mask)[0].softmax(-1)

    def answers(self, layers, skipped):
        """[N, C]: of all samples alone, at their layers, along their paths."""
        paths = [()] * len(layers) if skipped is None else [(row.nonzero()[:, 0] + 1).tolist() for row in skipped]
        return torch.stack([self.alone(index, layer, frozenset(paths[index])) for index, layer in enumerate(layers.tolist())])


@pytest.fixture(scope="module", params=["never", "gates", "planned"])
def plain(request, tokenizer, texts):
    return Plain(request.param, tokenizer, texts)


def test_the_comparison_below_sees_many_exits(plain):
    """Guards the test below: on its models thresholds and tables really split the samples."""
    for policy, expected in plain.expected.items():
        assert expected.exit_layers.unique().numel() > 1 or policy in SAME_FOR_ALL, policy
    skipped = plain.expected["full"].skipped
    assert skipped is None or len(skipped.unique(dim=0)) > 1


@pytest.mark.parametrize(("name", "dtype"), FORMS)
def test_answers_are_those_of_torch_in_float32(plain, tokenizer, texts, name, dtype):
    """Under each policy. Where rounding moves an exit or a gate the answer is another's: those samples are few, and are
    compared, as all are, at their own exit and along their own path."""
    model = plain.model
    other = Engine(model, tokenizer, plain.engine.policy, runner=make(model, name, dtype), token_budget=40)
    assert (other.runner.name, other.dtype) == (name, dtype)
    record = other.every_exit(texts)
    for policy in POLICIES:
        expected, got = plain.expected[policy], other.with_policy(f"{policy}+{plain.skipping}").predict(texts)
        moved = got.exit_layers != expected.exit_layers
        if expected.skipped is not None:
            moved |= (got.skipped != expected.skipped).any(1)
        alone = plain.answers(got.exit_layers, got.skipped)
        assert int(moved.sum()) <= MOVED[dtype], policy
        torch.testing.assert_close(got.probabilities, alone, atol=TOLERANCES[dtype], rtol=0)
        kept = got.probabilities[~moved], expected.probabilities[~moved]
        torch.testing.assert_close(*kept, atol=TOLERANCES[dtype], rtol=0)
        if plain.skipping != "skip:planned":
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
