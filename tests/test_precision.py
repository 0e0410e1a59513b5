"""Low precision, packed and compiled layers: the same answers but for rounding, and a model that stays as it was."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from geep_triton import Engine, MultiExitBert, build_exit_table, calibrate
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.lean import LeanLayer, lean, replace_layers
from geep_triton.runners.linear import PackedLinear
from geep_triton.runners.make import make_runner, usual_dtype
from geep_triton.runners.padded import PaddedRunner
from geep_triton.runners.parts import Parts

# Largest difference of a probability from float32's on MiniLM, whose weights are those of a trained model.
TOLERANCES = {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.06}
REVIEWS = [
    "The soup was anything but bland, and the staff could not have been kinder.",
    "A tedious novel.",
    "We waited for an hour, then left; never again!",
    "It is a film that, for all its faults, one thinks about for days afterwards.",
] * 3
POLICIES = ["full", "constant:2", "threshold:0.8", "patience:1", "predicted:mean", "predicted:0.05+threshold:0.8"]


@pytest.fixture(scope="module")
def real(minilm_path):
    torch.manual_seed(0)
    return MultiExitBert.from_pretrained(minilm_path, pooling="mean").eval(), AutoTokenizer.from_pretrained(minilm_path)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_answers_of_every_exit_on_real_weights(real, dtype):
    model, tokenizer = real
    before = copy.deepcopy(model.state_dict())
    expected = Engine(model, tokenizer).exit_logits(REVIEWS)[1].softmax(-1)
    engine = Engine(model, tokenizer, dtype=dtype)
    got = engine.exit_logits(REVIEWS)[1]
    assert engine.dtype == dtype
    assert got.dtype == torch.float32
    assert float((got.softmax(-1) - expected).abs().max()) <= TOLERANCES[dtype]
    assert (dtype == "float32") == torch.equal(got.softmax(-1), expected)  # else nothing was converted
    assert model.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_answer_what_their_exits_say(model, tokenizer, texts, dtype, policy):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.7, progress=False, dtype=dtype)
    engine = Engine(model, tokenizer, policy, dtype=dtype, token_budget=40)
    result, (_, logits) = engine.predict(texts), engine.exit_logits(texts)
    at = torch.tensor([model.config.exit_layers.index(layer) for layer in result.exit_layers.tolist()])
    expected = logits[torch.arange(len(texts)), at].softmax(-1)
    assert float((result.probabilities - expected).abs().max()) < 0.1
    assert engine.layer_costs.points[-1][1] > 0


def test_a_runner_shares_what_is_not_converted(model):
    half, small = make_runner(model, dtype="bfloat16"), make_runner(model, dtype="int8")
    assert make_runner(model, dtype="float32").parts.layers is model.bert.encoder.layer
    assert {parameter.dtype for part in half.parts for parameter in part.parameters()} == {torch.bfloat16}
    assert half.model.config is small.model.config is model.config
    assert small.parts.embeddings.word_embeddings.weight is model.bert.embeddings.word_embeddings.weight
    head = small.parts.heads["1"]
    assert head.classifier.weight is model.heads["1"].classifier.weight
    layer = small.parts.layers[0]
    for linear in (
        *(layer.attention.self.qkv, layer.attention.output.dense, layer.intermediate.dense, layer.output.dense),
        *(head.reduce, head.query, head.key_value),
    ):
        assert linear.linear.weight().dtype == torch.qint8
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
def test_lean_layers_answer_as_those_of_transformers(make_model, fuse, hidden_act):
    model = make_model(hidden_act=hidden_act)
    hidden, attention_mask = torch.randn(3, 7, model.config.hidden_size), torch.ones(3, 7, dtype=torch.int64)
    attention_mask[1, 3:] = 0
    parts = Parts.copied(model)
    replace_layers(parts.layers, partial(lean, fuse=fuse))
    assert {type(layer) for layer in parts.layers} == {LeanLayer}
    made = PaddedRunner(model, parts)
    with torch.inference_mode():
        for mask in (None, model.layer_mask(hidden, attention_mask)):
            for layer in range(1, model.config.num_hidden_layers + 1):
                expected, got = (one.run_layer(layer, hidden, mask) for one in (model, made))
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_layers_with_another_attention_stay_as_they_are(make_model, tokenizer, texts):
    eager = make_model()
    eager.set_attn_implementation("eager")
    plain = Engine(eager, tokenizer, "full").predict(texts).logits
    for settings, tolerance in (({"runner": "onednn"}, 1e-5), ({"dtype": "int8"}, 0.1)):
        engine = Engine(eager, tokenizer, "full", **settings)
        assert not any(isinstance(layer, LeanLayer) for layer in engine.runner.parts.layers)
        torch.testing.assert_close(engine.predict(texts).logits, plain, atol=tolerance, rtol=0)
    engine = Engine(eager, tokenizer, runner="onednn")
    eager.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="given another attention implementation"):
        engine.predict(texts)


def test_a_table_and_temperatures_that_come_later_reach_the_runner(model, tokenizer, texts):
    engine = Engine(model, tokenizer, "full", dtype="int8")
    before = engine.predict(texts).logits
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.7, progress=False)
    engine.with_policy("predicted").predict(texts)
    model.exit_config.temperatures = [1.0, 1.0, 1.0, 2.0]
    torch.testing.assert_close(engine.predict(texts).logits, before / 2)


FORMS = [{}, {"runner": "onednn"}, {"dtype": "int8"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "runner": "onednn"}]


@pytest.mark.parametrize("settings", FORMS)
def test_an_engine_whose_model_is_trained_refuses(model, tokenizer, texts, settings):
    engine = Engine(model, tokenizer, "full", **settings)
    engine.predict(texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)  # as the Trainer's, which hides what it writes
    model(
        **tokenizer(texts, padding=True, return_tensors="pt"), labels=torch.zeros(len(texts), dtype=torch.int64)
    ).loss.backward()
    optimizer.step()
    with pytest.raises(ValueError, match="weights have changed since this engine"):
        engine.predict(texts)
    with pytest.raises(ValueError, match="weights have changed since this engine"):
        engine.exit_logits(texts)
    Engine(model, tokenizer, "full", **settings).predict(texts)


def test_skip_gates_in_low_precision(make_model, tokenizer, texts):
    gated = make_model(skip_gate="mean", skip_gate_bias=0.0)
    for dtype in ("bfloat16", "int8"):
        result = Engine(gated, tokenizer, "full", dtype=dtype).predict(texts)
        assert 0 < int(result.skipped.sum()) < result.skipped.numel()


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int4", "unknown dtype 'int4'; known: bfloat16, float16, float32, int8"),
        (torch.float64, "unknown dtype 'float64'"),
        ("", "unknown dtype ''"),
    ],
)
def test_unknown_dtypes(model, tokenizer, dtype, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, dtype=dtype)


def test_int8_needs_float32_on_a_cpu(model, make_model, tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="needs a model in float32, got torch.bfloat16"):
        Engine(make_model().bfloat16(), tokenizer, dtype="int8")
    with pytest.raises(ValueError, match="on meta runs in float32, bfloat16, float16, got dtype 'int8'"):
        make_runner(make_model().to("meta"), dtype="int8")
    monkeypatch.delattr("torch.ao.quantization.per_channel_dynamic_qconfig")
    with pytest.raises(ValueError, match="dtype 'int8': torch .* cannot quantize here"):
        Engine(model, tokenizer, dtype="int8")


@pytest.mark.parametrize("policy", POLICIES)
def test_packed_layers_answer_as_others_do(model, tokenizer, texts, policy):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.7, progress=False)
    before = copy.deepcopy(model.state_dict())
    plain, packed = (Engine(model, tokenizer, policy, token_budget=40, runner=runner) for runner in ("torch", "onednn"))
    expected, got = plain.predict(texts), packed.predict(texts)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=0)
    assert got.exit_layers.tolist() == expected.exit_layers.tolist()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_layers_on_real_weights(real, dtype):
    """Every linear layer of the encoder is packed, its GELU too; answers are those of the same precision unpacked."""
    model, tokenizer = real
    expected = Engine(model, tokenizer, dtype=dtype).exit_logits(REVIEWS)[1].softmax(-1)
    engine = Engine(model, tokenizer, dtype=dtype, runner="onednn")
    assert float((engine.exit_logits(REVIEWS)[1].softmax(-1) - expected).abs().max()) <= max(1e-5, TOLERANCES[dtype])
    encoder = engine.runner.parts.layers
    assert sum(isinstance(module, PackedLinear) for module in encoder.modules()) == 6 * model.config.num_hidden_layers
    assert not any(isinstance(module, torch.nn.Linear) for module in encoder.modules())
    assert {layer.intermediate.dense.activation for layer in encoder} == {"gelu"}


@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 5, 64), (7, 64), (5, 16, 64), (5, 17, 64)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_packed_linear(shape, bias, activation):
    linear, states = torch.nn.Linear(64, 48, bias=bias), 3 * torch.randn(shape)
    with torch.inference_mode():
        expected = torch.nn.functional.gelu(linear(states)) if activation == "gelu" else linear(states)
        torch.testing.assert_close(PackedLinear(linear, activation)(states), expected, atol=1e-5, rtol=1e-5)


def test_packed_linear_meets_few_numbers_of_rows(monkeypatch):
    """oneDNN builds a kernel for each: of all batches up to 1,024 rows there are no more than it keeps."""
    met, product = set(), torch.ops.mkldnn._linear_pointwise

    def spied(rows, *others):
        met.add(len(rows))
        return product(rows, *others)

    packed = PackedLinear(torch.nn.Linear(4, 4))
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spied)
    with torch.inference_mode():
        for count in range(1, 1025):
            assert packed(torch.ones(count, 4)).shape == (count, 4)
    assert len(met) == 66


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_every_form_meets_few_numbers_of_rows(model, tokenizer, monkeypatch, dtype):
    """Whatever batches shrink to: memory would grow with each number that is met."""
    from geep_triton.runners import linear

    met, padded = set(), linear.pad_rows

    def spied(states):
        met.add(len(padded(states)))
        return padded(states)

    monkeypatch.setattr(linear, "pad_rows", spied)
    engine = Engine(model, tokenizer, "threshold:0.9", dtype=dtype, token_budget=300)
    rows = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 30, (400,), generator=rows).tolist()
    engine.predict({"input_ids": [torch.randint(5, 12, (size,), generator=rows).tolist() for size in sizes]})
    assert 5 < len(met) < 40
    assert all(count <= 16 or (count % 8 == 0 and (count <= 64 or count % 16 == 0)) for count in met)


def test_a_float16_model_on_a_cpu_is_slow_aloud(make_model, tokenizer, texts):
    model = make_model().half()
    with pytest.warns(UserWarning, match="float16, which most CPUs multiply slowly") as warned:
        Engine(model, tokenizer, "full").predict(texts)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Engine(model, tokenizer, "full", dtype="float16").predict(texts)


@pytest.mark.parametrize("change", ["in place", "another", "state", "behind torch's back"])
def test_a_head_that_is_damaged_later_is_not_passed_by(model, tokenizer, texts, change):
    engine = Engine(model, tokenizer, "threshold:0.0")
    engine.predict(texts)
    head = model.heads["1"].classifier
    if change == "in place":
        with torch.no_grad():
            head.weight[0, 0] = torch.nan
    elif change == "another":
        head.weight = torch.nn.Parameter(torch.full_like(head.weight, torch.nan))
    elif change == "state":
        head.load_state_dict({"weight": torch.full_like(head.weight, torch.nan), "bias": head.bias.detach()}, assign=True)
    else:
        head.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights have changed|NaN or infinite at the exit of layer 1"):
        engine.predict(texts)


@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan"), "hot"])
def test_temperatures_that_are_set_later_are_checked(model, tokenizer, texts, value):
    engine = Engine(model, tokenizer, "threshold:0.5")
    with pytest.raises((TypeError, ValueError), match="temperatures"):
        model.exit_config.temperatures = [1.0] * (len(model.config.exit_layers) - 1) + [value]
    assert model.exit_config.temperatures is None
    model.exit_config.temperatures = [1.0, 2.0]
    for call in (engine.predict, engine.exit_logits):
        with pytest.raises(ValueError, match=r"temperatures must be one per exit \(4\), got 2"):
            call(texts)


def test_weights_that_are_no_floating_point_numbers(model, tokenizer):
    weight = model.heads["1"].classifier.weight
    for dtype in (torch.int8, torch.int64, torch.bool):
        model.heads["1"].classifier.weight = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(ValueError, match=f"weights of heads.1.classifier.weight are {dtype}, expected floating point"):
            Engine(model, tokenizer, "full")


def test_other_activations_stay_where_they_are(make_model, tokenizer, texts):
    model = make_model(hidden_act="relu")
    expected, got = (Engine(model, tokenizer, runner=runner).predict(texts).logits for runner in ("torch", "onednn"))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_skip_gates_of_a_packed_model(make_model, tokenizer, texts):
    gated = make_model(skip_gate="attention", skip_gate_size=8, skip_gate_bias=0.0)
    expected, got = (Engine(gated, tokenizer, "full", runner=runner).predict(texts) for runner in ("torch", "onednn"))
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=0)
    assert torch.equal(got.skipped, expected.skipped)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runner": "onednn", "dtype": "float16"}, "'onednn' on cpu runs in float32, bfloat16, int8, got dtype 'float16'"),
        ({"runner": "torch", "dtype": "int8"}, "got dtype 'int8': int8 is for the runner 'onednn' on a CPU"),
        ({"runner": "compiled", "dtype": "int8"}, "got dtype 'int8': torch's int8 layers cannot be compiled"),
        ({"runner": "packed"}, "runner 'packed' is for models on cuda, got one on cpu"),
        ({"runner": "graphs"}, "runner 'graphs' is for models on cuda, got one on cpu: CUDA graphs need a CUDA device"),
        ({"runner": "fast"}, "unknown runner 'fast'; known: auto, compiled, graphs, onednn, packed, torch"),
    ],
    ids=str,
)
def test_what_does_not_go_together(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, **settings)


def test_where_onednn_cannot_be_had(model, make_model, tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="'onednn' is for models on cpu, got one on meta"):
        make_runner(make_model().to("meta"), "onednn")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="comes without oneDNN's linear layers"):
        Engine(model, tokenizer, runner="onednn")
    assert make_runner(model, in_place=True).name == "torch"


@pytest.mark.parametrize("changes", [{}, {"head": "pooler"}, {"skip_gate": "mean", "skip_gate_bias": 0.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_holds_nothing_twice_and_answers_the_same(make_model, tokenizer, texts, changes, dtype):
    expected = Engine(make_model(**changes).to(dtype), tokenizer, "threshold:0.7", runner="onednn").predict(texts)
    model = make_model(**changes).to(dtype)
    parts = (model.bert.encoder, model.heads)
    weights = [weakref.ref(module.weight) for part in parts for module in part.modules() if isinstance(module, torch.nn.Linear)]
    engine = Engine(model, tokenizer, "threshold:0.7", runner=make_runner(model, in_place=True))
    assert len(weights) > 6 * model.config.num_hidden_layers
    assert not any(weight() is not None for weight in weights)
    assert engine.model is model
    assert (engine.runner.name, engine.dtype) == ("onednn", model.converted.layers)
    got = engine.predict(texts)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.exit_layers, expected.exit_layers)
    again = Engine(model, tokenizer, "full", runner="onednn")
    assert again.runner.parts.layers is model.bert.encoder.layer
    assert again.predict(texts).exit_layers.unique().tolist() == [model.config.num_hidden_layers]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        there = make_model(**changes).to(dtype).bert(**given).last_hidden_state
        got = model.bert(**given).last_hidden_state
    real = given["attention_mask"].bool()
    torch.testing.assert_close(got[real], there[real], atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0)


def with_costs_of(engine, other):
    """The other engine, which makes the same batches: those that it measures itself may have survivors wait elsewhere."""
    other.__dict__["layer_costs"] = engine.layer_costs
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_converted_in_place_is_saved_and_copied_as_it_was(make_model, tokenizer, texts, tmp_path, dtype):
    model = make_model().to(dtype)
    before = copy.deepcopy(model.state_dict())
    engine = Engine(model, tokenizer, "threshold:0.7", runner=make_runner(model, "onednn", in_place=True))
    model.exit_table = build_exit_table(model, tokenizer, texts[:4], 0.7, progress=False)
    calibrate(engine, texts[4:] * 9, mean_depth=3.0)
    expected = engine.predict(texts).logits
    engine.save_pretrained(tmp_path)
    loaded = MultiExitBert.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert loaded.state_dict().keys() == before.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name]), name
    other = with_costs_of(engine, Engine.from_pretrained(tmp_path, device="cpu"))
    assert other.runner.name == "onednn"
    assert torch.equal(other.predict(texts).logits, expected)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again = with_costs_of(engine, Engine(same, tokenizer, engine.policy))
        assert torch.equal(again.predict(texts).logits, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("there", [True, False])
def test_an_engine_that_rounded_its_weights_saves_what_it_loaded(make_model, tokenizer, texts, tmp_path, dtype, there):
    """Over the folder that it was loaded from, and elsewhere; and refuses where that holds other weights by now."""
    model = make_model()
    Engine(model, tokenizer, "full").save_pretrained(tmp_path / "a")
    engine = Engine.from_pretrained(tmp_path / "a", dtype=dtype, device="cpu")
    assert engine.model.converted.dtype == "float32"
    engine.model.exit_table = build_exit_table(engine.model, tokenizer, texts[:4], 0.7, progress=False)
    calibrate(engine, texts[4:] * 9, mean_depth=3.0)
    where = tmp_path / ("a" if there else "b")
    engine.save_pretrained(where)
    again = MultiExitBert.from_pretrained(where)
    assert again.dtype == torch.float32
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    expected = engine.predict(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = with_costs_of(engine, Engine.from_pretrained(where, dtype=dtype, device="cpu"))
        assert torch.equal(other.predict(texts).logits, expected.logits)
    with torch.no_grad():
        model.heads["1"].classifier.bias += 1
    model.save_pretrained(tmp_path / "a")
    if not there:
        with pytest.raises(ValueError, match="does not hold what they were any more"):
            engine.save_pretrained(tmp_path / "c")
        assert not (tmp_path / "c" / "config.json").exists()


def test_what_cannot_be_done_with_a_model_converted_in_place(make_model, tokenizer, texts):
    model = make_model()
    before = Engine(model, tokenizer, runner=make_runner(model, "onednn", in_place=True)).predict(texts).logits
    for do in (
        model.train,
        lambda: model.load_state_dict(make_model().state_dict()),
        lambda: model.to(torch.bfloat16),
        lambda: model.to("meta"),
        lambda: Engine(model, tokenizer, dtype="bfloat16"),
        lambda: Engine(model, tokenizer, dtype="int8"),
        lambda: Engine(model, tokenizer, runner="compiled"),
    ):
        with pytest.raises(ValueError, match="the model's layers were converted for inference.*; load it again"):
            do()
    assert model.eval() is model
    assert model.to("cpu") is model
    assert torch.equal(Engine(model, tokenizer).predict(texts).logits, before)


@pytest.mark.parametrize("settings", [{}, {"runner": "onednn"}, {"dtype": "int8"}, {"dtype": "bfloat16"}], ids=str)
def test_an_engine_whose_model_is_converted_under_it_says_so(make_model, tokenizer, texts, settings):
    model = make_model()
    engine = Engine(model, tokenizer, "full", **settings)
    make_runner(model, "onednn", in_place=True)
    with pytest.raises(ValueError, match="weights have changed since this engine was made"):
        engine.predict(texts)


@pytest.mark.parametrize("change", ["hook", "eager"])
def test_auto_converts_nothing_that_would_be_lost(make_model, change):
    model = make_model()
    if change == "hook":
        model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
    else:
        model.set_attn_implementation("eager")
    assert make_runner(model, in_place=True).name == "torch"
    model.train()


class Adapted(torch.nn.Linear):
    """As peft's layers: it has the weight and bias of the layer that it adapts, and does more than multiply by them."""

    def forward(self, states):
        return super().forward(states) + 1


CONVERSIONS = [{"name": "onednn"}, {"name": "onednn", "in_place": True}, {"dtype": "int8"}, {"dtype": "int8", "in_place": True}]
CHANGES = {
    "attention.self.value": (Adapted(32, 32), "Adapted, expected Linear"),
    "output.dropout": (torch.nn.Sequential(torch.nn.Dropout()), "Sequential, expected Dropout"),
    "intermediate.intermediate_act_fn": (torch.nn.Sequential(torch.nn.GELU(), Adapted(64, 64)), "Sequential, expected GELU"),
    "attention.adapter": (Adapted(32, 32), "Adapted, expected nothing"),
}


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
@pytest.mark.parametrize("name", CHANGES)
def test_adapters_are_not_lost(make_model, tokenizer, texts, settings, name):
    model, (module, message) = make_model(), CHANGES[name]
    model.bert.encoder.layer[1].set_submodule(name, module)
    with pytest.raises(ValueError, match=f"layer 2, {name} is a {message}.*: merge or remove adapters first"):
        make_runner(model, **settings)
    assert model.converted is None
    Engine(model, tokenizer).predict(texts)


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
@pytest.mark.parametrize("part", ["", "attention.self", "output.dense", "intermediate.intermediate_act_fn"])
def test_hooks_are_not_lost(make_model, tokenizer, texts, settings, part):
    model = make_model()
    module = model.bert.encoder.layer[1].get_submodule(part)
    hook = module.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"layer 2(, )?{part} has forward hooks, which would be lost"):
        make_runner(model, **settings)
    hook.remove()
    module.forward = module.forward  # as accelerate's hooks do
    with pytest.raises(ValueError, match="has forward hooks"):
        make_runner(model, **settings)


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
def test_what_is_around_a_layer_or_in_a_head_is_not_lost(make_model, tokenizer, settings):
    model = make_model()
    model.heads["1"].classifier = Adapted(8, 3)
    with pytest.raises(ValueError, match="head 1, classifier is a Adapted"):
        make_runner(model, **settings)
    model = make_model()
    model.bert.encoder.layer[0] = torch.nn.Sequential(model.bert.encoder.layer[0])
    model.train()
    with pytest.raises(ValueError, match="layer 1 is a Sequential, expected BertLayer"):
        make_runner(model, **settings)


@pytest.mark.parametrize("settings", CONVERSIONS, ids=str)
def test_layers_and_heads_may_be_shared(make_model, tokenizer, texts, settings):
    model = make_model()
    model.bert.encoder.layer[1], model.heads["2"] = model.bert.encoder.layer[0], model.heads["1"]
    expected = Engine(model, tokenizer).exit_logits(texts)[1].softmax(-1)
    got = Engine(model, tokenizer, runner=make_runner(model, **settings)).exit_logits(texts)[1].softmax(-1)
    torch.testing.assert_close(got, expected, atol=0.1 if "dtype" in settings else 1e-5, rtol=0)


def counting_backend(graphs: list):
    """A backend of torch.compile that runs graphs as they are."""

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return backend


def test_one_graph_serves_all_layers_and_shapes(make_model):
    model, graphs = make_model(num_hidden_layers=10), []
    other = CompiledRunner(model, backend=counting_backend(graphs))
    known = len(graphs)
    for _ in range(2):  # more than torch compiles for one function
        CompiledRunner(make_model(num_hidden_layers=1, hidden_size=16), backend=counting_backend([]))
    assert 2 <= known <= 4  # with a mask and without, for one sample and for many; not one each for ten layers
    assert other.compile_seconds > 0
    with torch.inference_mode():
        for samples, tokens in ((2, 3), (5, 7), (3, 33), (1, 9), (1, 64), (16, 2)):
            hidden = torch.randn(samples, tokens, 32)
            mask = model.layer_mask(hidden, (torch.arange(tokens) < torch.arange(1, samples + 1)[:, None]).long())
            for given in (None, mask):
                for layer in (1, 2, 10):
                    expected = model.run_layer(layer, hidden, given)
                    torch.testing.assert_close(other.run_layer(layer, hidden, given), expected)
    assert len(graphs) == known


@pytest.mark.skipif(shutil.which("g++") is None and not torch.cuda.is_available(), reason="torch.compile needs a C++ compiler")
def test_compiled_engine(model, tokenizer, texts):
    plain = Engine(model, tokenizer, "threshold:0.8", token_budget=40)
    fast = Engine(model, tokenizer, "threshold:0.8", token_budget=40, runner="compiled")
    assert fast.runner.compile_seconds > 0
    torch.testing.assert_close(fast.exit_logits(texts)[1], plain.exit_logits(texts)[1], atol=1e-4, rtol=1e-4)
    assert fast.predict(texts).label_ids.tolist() == plain.predict(texts).label_ids.tolist()


def test_compile_errors(model, tokenizer):
    def broken(graph, example_inputs):
        raise OSError("no compiler\nmore")

    with pytest.raises(ValueError, match="torch.compile does not work here .*no compiler"):
        CompiledRunner(model, backend=broken)


@pytest.mark.parametrize(
    ("device", "own", "calibrated_in", "calibrated", "native", "expected"),
    [
        ("cpu", torch.float32, None, True, True, "float32"),
        ("cpu", torch.bfloat16, None, True, True, "bfloat16"),
        ("cpu", torch.float32, "int8", True, True, "float32"),  # refused later: the model's own is what a CPU runs
        ("cuda", torch.float32, None, True, True, "bfloat16"),
        ("cuda", torch.float32, None, True, False, "float16"),
        ("cuda", torch.float16, None, True, True, "float16"),
        ("cuda", torch.float32, "float32", True, True, "float32"),
        ("cuda", torch.float32, "float32", False, True, "bfloat16"),
    ],
)
def test_usual_dtype(monkeypatch, device, own, calibrated_in, calibrated, native, expected):
    """Half precision on a GPU, but where a calibration in another is to hold; what has no bfloat16 of its own takes float16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    served = SimpleNamespace(calibration=calibrated_in and {"dtype": calibrated_in})
    model = SimpleNamespace(device=torch.device(device), dtype=own, exit_config=served)
    assert usual_dtype(model, calibrated) == expected


def test_float16(model, tokenizer, texts):
    expected, engine = Engine(model, tokenizer).predict(texts), Engine(model, tokenizer, dtype="float16")
    assert engine.dtype == "float16"
    torch.testing.assert_close(engine.predict(texts).probabilities, expected.probabilities, atol=0.01, rtol=0)


def test_a_dtype_of_torch_is_its_name(model, tokenizer, texts):
    expected, got = (Engine(model, tokenizer, dtype=dtype) for dtype in ("bfloat16", torch.bfloat16))
    assert got.dtype == "bfloat16"
    assert torch.equal(got.predict(texts).logits, expected.predict(texts).logits)
    with pytest.raises(ValueError, match="unknown dtype 'float8_e4m3fn'"):
        Engine(model, tokenizer, dtype=torch.float8_e4m3fn)
