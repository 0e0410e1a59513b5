"""Layers in int8: how weights are rounded, what answers depend on, and what becomes of the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from geep_triton import Engine, MultiExitBert, give_exits, quantize
from geep_triton.compat import multiplies_int8, packed_int8, quiet_quantization, unpacked_int8
from geep_triton.modeling.int8_layers import FORMAT, INT8_FILE
from geep_triton.runners.make import make_runner
from geep_triton.runners.onednn import attention
from geep_triton.runners.onednn.int8 import Int8Linear
from geep_triton.runners.onednn.rounding import Shares, rounded, smoothing_of
from tests.int8 import quantized

REVIEWS = [
    "The soup was anything but bland, and the staff could not have been kinder.",
    "A tedious novel.",
    "We waited for an hour, then left; never again!",
    "It is a film that, for all its faults, one thinks about for days afterwards.",
]


def correlated(rows: int, size: int) -> torch.Tensor:
    """Inputs whose channels go together and have means, as those of layers do."""
    return torch.randn(rows, 4) @ torch.randn(4, size) + 0.3 * torch.randn(rows, size) + torch.randn(size)


def product(made, inputs):
    linear = Int8Linear(made, True)
    with quiet_quantization():
        return linear(linear.round(inputs))


def test_a_rounded_product_errs_less_than_by_rounding_to_the_nearest():
    weight, bias, inputs = torch.randn(48, 96), torch.randn(48), correlated(2_000, 96)
    exact = F.linear(inputs, weight, bias)
    scale = weight.abs().amax(1, keepdim=True) / 127
    nearest = F.linear(inputs, (weight / scale).round() * scale, bias)
    made = rounded(weight, bias, inputs)
    only_weights = F.linear(inputs, unpacked_int8(made.weight).float() * made.weight_scale[:, None], bias)
    assert float((only_weights - exact).std()) < 0.5 * float((nearest - exact).std())
    error = product(made, inputs) - exact
    assert float(error.std()) < 0.02 * float(exact.std())


def test_smoothing_keeps_a_channel_with_large_values_from_coarsening_all_others():
    weight, bias, inputs = torch.randn(48, 96), torch.randn(48), torch.randn(2_000, 96)
    inputs[:, 7] *= 60
    weight[:, 7] /= 60
    exact = F.linear(inputs, weight, bias)
    plain, smooth = rounded(weight, bias, inputs), rounded(weight, bias, inputs, smoothing_of(inputs, weight))
    errors = [float((product(made, inputs) - exact).std()) for made in (plain, smooth)]
    assert errors[1] < 0.2 * errors[0]


def test_integers_are_multiplied_as_they_stand():
    """The product is that of the dequantized inputs and weights, exactly up to float32."""
    weight, bias, inputs = torch.randn(40, 64), torch.randn(40), torch.randn(33, 64)
    made = rounded(weight, bias, inputs, smoothing_of(inputs, weight))
    fast, slow = Int8Linear(made, True), Int8Linear(made, False)
    rows = fast.round(inputs)
    assert rows.dtype == torch.uint8
    for activation in ("none", "gelu", "relu"):
        torch.testing.assert_close(fast(rows, activation), slow(rows, activation), atol=1e-4, rtol=1e-5)
        out = (0.05, 10)
        assert int((fast(rows, activation, out).int() - slow(rows, activation, out).int()).abs().max()) <= 1


def test_values_out_of_range_are_the_nearest_that_there_are():
    made = rounded(torch.randn(8, 16), torch.zeros(8), torch.rand(100, 16))
    rows = Int8Linear(made, True).round(torch.tensor([[1e30, -1e30, torch.inf, -torch.inf, *[0.0] * 12]]))
    assert rows[0, :4].tolist() == [255, 0, 255, 0]
    assert rows[0, 4:].unique().tolist() == [made.input_zero]


@pytest.mark.parametrize("activation", [F.gelu, F.relu])
def test_shares_of_a_unit_add_up(activation):
    states, weight, bias, after = torch.randn(500, 32), torch.randn(96, 32) / 6, torch.randn(96) / 4, torch.randn(8, 96)
    weight[5] *= 12
    hidden = activation(F.linear(states, weight, bias))
    shares = Shares.of(hidden)
    assert float(hidden.max()) > 2 * shares.width
    assert set(shares.units.tolist()) == {5}
    assert 0 < len(shares.units) <= 96 // 48
    wide = activation(F.linear(states, *shares.expand(weight, bias))).clamp(max=shares.width)
    exact = F.linear(hidden, after)
    error = F.linear(wide, shares.reduce(after)) - exact
    assert float(error.abs().max()) <= 0.35 * float(after.abs().max())  # where two shares meet, GELU is not quite straight
    assert float(error.abs().mean()) < 0.01 * float(exact.abs().mean())
    torch.testing.assert_close(shares.hidden(hidden).sum(1), wide.sum(1), atol=0.4, rtol=0)


def test_units_of_a_small_range_are_not_cut():
    shares = Shares.of(torch.rand(100, 96))
    assert len(shares.units) == 0
    assert shares.width <= 1


@pytest.mark.parametrize("length", [1, 3, 15, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_both_ways_to_attend_are_one(length, dtype, masked):
    samples, heads, size = 5, 3, 8
    query, key, value = (torch.randn(samples, length, heads, size).to(dtype).transpose(1, 2) for _ in range(3))
    mask = torch.zeros(samples, 1, 1, length, dtype=dtype)
    if masked:
        mask[1:, ..., length // 2 + 1 :] = -torch.inf
    given = mask if masked else None
    expected = attention._sdpa(query.float(), key.float(), value.float(), None if given is None else given.float(), 0.3)
    got = attention._batched(query, key, value, given, 0.3)
    torch.testing.assert_close(got.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.03, rtol=0)


def test_what_lies_beyond_the_keys_is_never_read(monkeypatch):
    """Memory that nobody wrote may hold NaN."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *size: empty(self, *size).fill_(torch.nan))
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    torch.testing.assert_close(attention._batched(query, key, value, None, 1.0), attention._sdpa(query, key, value, None, 1.0))


@pytest.fixture(scope="module")
def real(minilm_path):
    torch.manual_seed(0)
    model = MultiExitBert.from_pretrained(minilm_path, pooling="mean").eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    words = " ".join(REVIEWS).split()
    generator = torch.Generator().manual_seed(1)
    picks = [torch.randint(len(words), (size,), generator=generator).tolist() for size in range(3, 43)]
    return quantized(model, tokenizer, [*REVIEWS, *(" ".join(words[pick] for pick in row) for row in picks)]), tokenizer


def test_an_answer_does_not_depend_on_the_texts_beside_it(real):
    """A float32 sum that rounds otherwise may move an integer by one; a scale that a neighbour sets moves all of them."""
    model, tokenizer = real
    engine = Engine(model, tokenizer, "full", dtype="int8")
    long = " ".join(REVIEWS * 6)
    alone = torch.cat([engine.every_exit([text]).logits for text in REVIEWS])
    for beside in ([], [long], [long, "!" * 100, "good " * 200]):
        got = engine.every_exit([*beside, *REVIEWS]).logits[len(beside) :]
        assert float((got - alone).abs().max()) < 0.01 * float(alone.std())


def test_answers_are_nearly_those_of_float32(real):
    model, tokenizer = real
    expected, got = (Engine(model, tokenizer, "full", dtype=dtype).every_exit(REVIEWS).logits for dtype in ("float32", "int8"))
    assert not torch.equal(got, expected)
    assert float((got - expected).abs().max()) < 0.1 * float(expected.std())


@pytest.mark.parametrize("hidden_act", ["gelu", "relu", "silu", "gelu_new"])
def test_any_activation(make_model, tokenizer, many, hidden_act):
    model = quantized(make_model(hidden_act=hidden_act, pooling="mean"), tokenizer, many)
    expected, got = (Engine(model, tokenizer, dtype=dtype).every_exit(many[:40]).logits for dtype in ("float32", "int8"))
    assert float((got - expected).abs().mean()) < 0.05 * float(expected.std())


def test_a_cpu_without_int8_products_answers_the_same_slowly(model, tokenizer, many, monkeypatch):
    quantized(model, tokenizer, many)
    expected = Engine(model, tokenizer, "full", dtype="int8").predict(many).logits
    monkeypatch.setattr("geep_triton.runners.onednn.convert.multiplies_int8", lambda: False)
    with pytest.warns(UserWarning, match=r"no int8 products without overflow \(VNNI\).*: right, but slow"):
        engine = Engine(model, tokenizer, "full", dtype="int8")
    got = engine.predict(many).logits
    assert float((got - expected).abs().mean()) < 1e-3


def test_older_instructions_overflow_and_are_noticed():
    """What oneDNN does on a CPU of before VNNI, tried here by its own switch."""
    code = "from geep_triton.compat import multiplies_int8; print(multiplies_int8())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False" or not multiplies_int8()


def test_weights_are_unpacked_as_they_were_packed():
    weight = torch.randint(-127, 128, (24, 40), dtype=torch.int8)
    assert torch.equal(unpacked_int8(packed_int8(weight)), weight)


def test_saved_and_loaded(model, tokenizer, many, tmp_path):
    quantized(model, tokenizer, many)
    engine = Engine(model, tokenizer, "threshold:0.8", dtype="int8")
    expected = engine.predict(many).logits
    Engine(model, tokenizer, "full").save_pretrained(tmp_path)
    loaded = MultiExitBert.from_pretrained(tmp_path)
    assert loaded.int8_layers.digest() == model.int8_layers.digest()
    assert (loaded.int8_layers.texts, loaded.int8_layers.source) == (model.int8_layers.texts, model.int8_layers.source)
    assert torch.equal(Engine(loaded, tokenizer, "threshold:0.8", dtype="int8").predict(many).logits, expected)
    own = Engine.from_pretrained(tmp_path, "threshold:0.8", dtype="int8", device="cpu")
    assert torch.equal(own.predict(many).logits, expected)
    before = (tmp_path / INT8_FILE).stat().st_mtime_ns
    own.save_pretrained(tmp_path)
    assert (tmp_path / INT8_FILE).stat().st_mtime_ns == before
    loaded.int8_layers = None
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / INT8_FILE).exists()
    assert MultiExitBert.from_pretrained(tmp_path).int8_layers is None


def test_exits_that_are_trained_later_change_nothing(model, tokenizer, many):
    quantized(model, tokenizer, many)
    before = Engine(model, tokenizer, "full", dtype="int8").predict(many).logits
    with torch.no_grad():
        model.heads["2"].classifier.weight.mul_(2)
    assert torch.equal(Engine(model, tokenizer, "full", dtype="int8").predict(many).logits, before)


def test_of_another_model(model, make_model, tokenizer, many, tmp_path):
    torch.manual_seed(3)
    other = MultiExitBert(make_model().config).eval()
    other.int8_layers = quantized(model, tokenizer, many).int8_layers
    with pytest.raises(ValueError, match="int8_layers are of other weights than the model's: quantize it again"):
        make_runner(other, dtype="int8")
    with pytest.raises(ValueError, match="int8_layers must be 3 layers of width 32, got 4"):
        make_model(num_hidden_layers=3).int8_layers = model.int8_layers
    with pytest.raises(ValueError, match="layer 1 must be of the shapes"):
        make_model(hidden_size=16).int8_layers = model.int8_layers
    with pytest.raises(ValueError, match="layer 1 must be of the shapes"):
        make_model(intermediate_size=128).int8_layers = model.int8_layers
    with pytest.raises(TypeError, match="int8_layers must be"):
        model.int8_layers = {}
    for source, target in ((model, "a"), (other, "b")):
        source.save_pretrained(tmp_path / target)
    quantized(other, tokenizer, many).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / INT8_FILE).write_bytes((tmp_path / "a" / INT8_FILE).read_bytes())
    with pytest.raises(ValueError, match="not those that the model was saved with. Remove the file"):
        MultiExitBert.from_pretrained(tmp_path / "b")
    (tmp_path / "b" / INT8_FILE).unlink()
    assert MultiExitBert.from_pretrained(tmp_path / "b").int8_layers is None


def spoil(tensors, name):
    if name == "gone":
        del tensors["2.expand.bias"]
    elif name == "more":
        tensors["1.expand.other"] = torch.ones(1)
    elif name == "nan":
        tensors["1.attend.weight_scale"][0] = torch.nan
    elif name == "negative":
        tensors["1.project.input_scale"] = torch.tensor(-1.0)
    elif name == "hashes":
        tensors["text_hashes"] = tensors["text_hashes"].float()
    elif name == "zero":
        tensors["3.reduce.input_zero"] = torch.tensor(256, dtype=torch.int32)
    else:
        tensors["1.attend.weight"] = tensors["1.attend.weight"].float()
    return tensors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "2.expand.bias must be finite"),
        ("more", "unknown tensors"),
        ("nan", "1.attend.weight_scale must be finite"),
        ("negative", "1.project.input_scale must be above 0"),
        ("zero", "3.reduce.input_zero must be between 0 and 255, got 256"),
        ("dtype", "1.attend.weight must be int8"),
        ("hashes", "text_hashes must be int64 of one dimension"),
    ],
)
def test_damaged_files(model, tokenizer, many, tmp_path, name, message):
    quantized(model, tokenizer, many).save_pretrained(tmp_path)
    path = tmp_path / INT8_FILE
    tensors = spoil(load_file(path), name)
    about = json.dumps({"source": model.int8_layers.source})
    save_file(tensors, path, metadata={"format": FORMAT, "about": about})
    with pytest.raises(ValueError, match=f"damaged int8 layers: {message}"):
        MultiExitBert.from_pretrained(tmp_path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="has no int8 layers: expected format"):
        MultiExitBert.from_pretrained(tmp_path)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="damaged safetensors file"):
        MultiExitBert.from_pretrained(tmp_path)


def test_bad_texts(model, make_model, tokenizer, many):
    with pytest.raises(ValueError, match="texts: scales for int8 need at least 32, got 31"):
        quantize(model, tokenizer, many[:31], progress=False)
    with pytest.raises(TypeError, match="nan"):
        quantize(model, tokenizer, [*many[:40], float("nan")], progress=False)
    with pytest.raises(ValueError, match="needs a model in float32"):
        quantize(make_model().bfloat16(), tokenizer, many, progress=False)
    with pytest.raises(ValueError, match="tokens"):
        quantize(model, tokenizer, [*many, "good " * 200], progress=False)
    with torch.no_grad():  # finite weights, whose products are not
        model.bert.encoder.layer[1].output.dense.weight.fill_(3e38)
    with pytest.raises(ValueError, match="layer 3: what flows through it on these texts is NaN or infinite"):
        quantize(model, tokenizer, many, progress=False)


def test_the_same_texts_give_the_same_layers_and_leave_the_model_as_it_was(model, tokenizer, many):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (quantize(model, tokenizer, many, progress=False).digest() for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_give_exits_quantizes(fine_tuned, many, tmp_path):
    engine = give_exits(fine_tuned, many, output=tmp_path, dtype="int8", agreement=0.8, epochs=1, progress=False)
    assert engine.dtype == engine.model.exit_config.calibration["dtype"] == "int8"
    again = Engine.from_pretrained(tmp_path, dtype="int8", device="cpu")
    assert torch.equal(again.with_policy("full").predict(many).logits, engine.with_policy("full").predict(many).logits)
