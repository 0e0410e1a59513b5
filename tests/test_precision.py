"""Low precision and packed layers: the same answers, within a stated tolerance."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.runners.lean import LeanLayer, lean, replace_layers
from geep_triton.runners.make import make_runner, usual_dtype
from geep_triton.runners.onednn import rows
from geep_triton.runners.onednn.int8 import Int8Layer
from geep_triton.runners.onednn.layer import RowsLayer
from geep_triton.runners.onednn.linear import OnednnLinear
from geep_triton.runners.padded import PaddedRunner
from geep_triton.runners.parts import Parts
from tests.int8 import quantized, ready

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
    expected = Engine(model, tokenizer).every_exit(REVIEWS).logits.softmax(-1)
    engine = Engine(ready(model, tokenizer, REVIEWS, {"dtype": dtype}), tokenizer, dtype=dtype)
    got = engine.every_exit(REVIEWS).logits
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
    ready(model, tokenizer, texts, {"dtype": dtype})
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.7, progress=False, dtype=dtype)
    engine = Engine(model, tokenizer, policy, dtype=dtype, token_budget=40)
    result, logits = engine.predict(texts), engine.every_exit(texts).logits
    at = torch.tensor([model.config.exit_layers.index(layer) for layer in result.exit_layers.tolist()])
    expected = logits[torch.arange(len(texts)), at].softmax(-1)
    assert float((result.probabilities - expected).abs().max()) < 0.1
    assert engine.layer_costs.points[-1][1] > 0


def test_a_runner_shares_what_is_not_converted(model, tokenizer, texts):
    half, small = make_runner(model, dtype="bfloat16"), make_runner(quantized(model, tokenizer, texts), dtype="int8")
    assert make_runner(model, dtype="float32").parts.layers is model.bert.encoder.layer
    assert {parameter.dtype for part in half.parts for parameter in part.parameters()} == {torch.bfloat16}
    assert half.model.config is small.model.config is model.config
    assert small.parts.embeddings.word_embeddings.weight is model.bert.embeddings.word_embeddings.weight
    assert {type(layer) for layer in small.parts.layers} == {Int8Layer}
    assert small.parts.layers[0].expand.product is model.int8_layers.products[0]["expand"]
    assert small.parts.layers[0].output.LayerNorm.weight is model.bert.encoder.layer[0].output.LayerNorm.weight
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
    engine = Engine(eager, tokenizer, "full", runner="onednn")
    assert not any(isinstance(layer, RowsLayer) for layer in engine.runner.parts.layers)
    torch.testing.assert_close(engine.predict(texts).logits, plain, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="quantize needs layers with SDPA attention, got 'eager'"):
        Engine(quantized(eager, tokenizer, texts), tokenizer, "full", dtype="int8")
    eager.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="given another attention implementation"):
        engine.predict(texts)


def test_a_table_and_temperatures_that_come_later_reach_the_runner(model, tokenizer, texts):
    engine = Engine(quantized(model, tokenizer, texts), tokenizer, "full", dtype="int8")
    before = engine.predict(texts).logits
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.7, progress=False)
    engine.with_policy("predicted").predict(texts)
    model.exit_config.temperatures = [1.0, 1.0, 1.0, 2.0]
    torch.testing.assert_close(engine.predict(texts).logits, before / 2)


FORMS = [{}, {"runner": "onednn"}, {"dtype": "int8"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "runner": "onednn"}]


@pytest.mark.parametrize("settings", FORMS)
def test_an_engine_whose_model_is_trained_refuses(model, tokenizer, texts, settings):
    engine = Engine(ready(model, tokenizer, texts, settings), tokenizer, "full", **settings)
    engine.predict(texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)  # as the Trainer's, which hides what it writes
    model(
        **tokenizer(texts, padding=True, return_tensors="pt"), labels=torch.zeros(len(texts), dtype=torch.int64)
    ).loss.backward()
    optimizer.step()
    with pytest.raises(ValueError, match="weights have changed since this engine"):
        engine.predict(texts)
    with pytest.raises(ValueError, match="weights have changed since this engine"):
        engine.every_exit(texts)
    if settings.get("dtype") == "int8":
        with pytest.raises(ValueError, match="int8_layers are of other weights than the model's: quantize it again"):
            Engine(model, tokenizer, "full", **settings)
    Engine(ready(model, tokenizer, texts, settings), tokenizer, "full", **settings).predict(texts)


def test_skip_gates_in_low_precision(make_model, tokenizer, texts):
    gated = quantized(make_model(skip_gate="mean", skip_gate_bias=0.0), tokenizer, texts)
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


def test_int8_needs_float32_on_a_cpu(model, make_model, tokenizer, texts, monkeypatch):
    with pytest.raises(ValueError, match="needs a model in float32, got torch.bfloat16"):
        Engine(make_model().bfloat16(), tokenizer, dtype="int8")
    with pytest.raises(ValueError, match="on meta runs in float32, bfloat16, float16, got dtype 'int8'"):
        make_runner(make_model().to("meta"), dtype="int8")
    with pytest.raises(ValueError, match="needs scales found on your texts: model.int8_layers = quantize"):
        Engine(model, tokenizer, dtype="int8")
    quantized(model, tokenizer, texts)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="comes without oneDNN's int8 products"):
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
    expected = Engine(model, tokenizer, dtype=dtype).every_exit(REVIEWS).logits.softmax(-1)
    engine = Engine(model, tokenizer, dtype=dtype, runner="onednn")
    assert float((engine.every_exit(REVIEWS).logits.softmax(-1) - expected).abs().max()) <= max(1e-5, TOLERANCES[dtype])
    encoder = engine.runner.parts.layers
    assert sum(isinstance(module, OnednnLinear) for module in encoder.modules()) == 6 * model.config.num_hidden_layers
    assert not any(isinstance(module, torch.nn.Linear) for module in encoder.modules())
    assert {layer.intermediate.dense.activation for layer in encoder} == {"gelu"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_every_form_meets_few_numbers_of_rows(model, tokenizer, texts, monkeypatch, dtype):
    """Whatever batches shrink to: memory would grow with each number that is met."""
    met, padded = set(), rows.pad_rows

    def spied(states):
        met.add(len(padded(states)))
        return padded(states)

    for module in ("rows",):
        monkeypatch.setattr(f"geep_triton.runners.onednn.{module}.pad_rows", spied)
    engine = Engine(ready(model, tokenizer, texts, {"dtype": dtype}), tokenizer, "threshold:0.9", dtype=dtype, token_budget=300)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 30, (400,), generator=generator).tolist()
    engine.predict({"input_ids": [torch.randint(5, 12, (size,), generator=generator).tolist() for size in sizes]})
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
    for call in (engine.predict, engine.every_exit):
        with pytest.raises(ValueError, match=r"temperatures must be one per exit \(4\), got 2"):
            call(texts)


def test_weights_that_are_no_floating_point_numbers(model, tokenizer):
    weight = model.heads["1"].classifier.weight
    for dtype in (torch.int8, torch.int64, torch.bool):
        model.heads["1"].classifier.weight = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(ValueError, match=f"weights of heads.1.classifier.weight are {dtype}, expected floating point"):
            Engine(model, tokenizer, "full")


@pytest.mark.parametrize(
    ("device", "own", "calibrated_in", "calibrated", "native", "expected"),
    [
        ("cpu", torch.float32, None, True, True, "float32"),
        ("cpu", torch.bfloat16, None, True, True, "bfloat16"),
        ("cpu", torch.float32, "int8", True, True, "int8"),
        ("cpu", torch.float32, "int8", False, True, "float32"),
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
    served = SimpleNamespace(calibration=calibrated_in and {"dtype": calibrated_in}, ranking_calibration=None)
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
