"""What a GPU machine gets is what was packed: models with trained exits, their tables, and texts."""

from __future__ import annotations

import copy
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from bench.gpu.inputs import CONTENTS, OPTIONS, accuracies, fit_linear, load_inputs, main, make_inputs, mean_states, spread
from bench.gpu.packing import CODES, SCALES, four_bits, from_four_bits, pack, unpack
from geep_triton import Engine, build_exit_table
from geep_triton.files.rows import read_rows
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset

SETS = ("moods", "pairs")
UNUSED = "again"  # a word of no test row
FILLERS = ["the", "a", "film", "soup", "was", "very"]


def write_rows(path: Path, count: int, seed: int, pairs: bool, extra: str | None = None) -> None:
    """Rows whose label hangs on one word."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    lines = []
    for index in range(count):
        mood = ("good", "bad")[index % 2]
        words = [mood, *generator.choices(FILLERS, k=generator.randint(1, 5)), *([extra] if extra and index % 3 == 0 else [])]
        generator.shuffle(words)
        row = {"text": " ".join(words), "label": mood, "source": "made up"}
        lines.append(json.dumps(row | ({"text_pair": "we liked it"} if pairs else {})))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def coarse(weight: torch.Tensor) -> torch.Tensor:
    """The weight's blocks rounded to 16 steps, as 4-bit files have them: the largest is -8 scales, of either sign."""
    if weight.ndim < 2:
        return weight.half().float()
    blocks = weight.unflatten(1, (-1, 32))
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = (largest / -8).half().float()
    codes = (blocks / scale).nan_to_num(0).round().clamp(-8, 7) + 8
    return (scale * (codes - 8)).flatten(1)


def save_backbone(folder: Path, tokenizer, seed: int, in_four_bits: bool = False) -> None:
    """A random BERT of two layers."""
    torch.manual_seed(seed)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            initializer_range=0.1,
        )
    )
    if in_four_bits:
        bert.load_state_dict({key: coarse(weight) for key, weight in bert.state_dict().items()})
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in SETS:
        write_rows(folder / name / "train.jsonl", 400, 1, name == "pairs", extra=UNUSED)
        write_rows(folder / name / "test.jsonl", 40, 2, name == "pairs")
    return folder


@pytest.fixture(scope="module")
def backbones(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Two layers of width 32; those of "e5" fit in four bits."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("minilm", "e5")}
    for seed, (name, folder) in enumerate(folders.items()):
        save_backbone(folder, tokenizer, seed, in_four_bits=name == "e5")
    return folders


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, backbones) -> Path:
    """The folder that the command makes."""
    folder = tmp_path_factory.mktemp("made") / "inputs"
    command = ["inputs", str(folder), "--data", str(data), "--sets", *SETS, "--test-rows", "30"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, "--model", str(backbones["minilm"]), "--e5", str(backbones["e5"])])
        main()
    return folder


@pytest.fixture(scope="module")
def loaded(made):
    return load_inputs(made)


def with_all_words(given, backbone: Path, half: bool):
    """The given model on the layers and words that it was packed from."""
    bert = BertModel.from_pretrained(backbone, add_pooling_layer=False, dtype=torch.float32)
    model = copy.deepcopy(given.model)
    model.bert.load_state_dict({name: w.half().float() if half else w for name, w in bert.state_dict().items()})
    return model


def logits_of(model, given) -> torch.Tensor:
    return Engine(model, given.tokenizer, "full", **OPTIONS).every_exit(given.rows).logits


def test_names_rows_and_form(loaded, data):
    assert [given.name for given in loaded] == ["minilm moods", "minilm pairs", "e5 moods", "e5 pairs"]
    for given in loaded:
        name = given.name.split()[1]
        rows = spread(read_rows(data / name / "test.jsonl"), 30)
        assert given.rows == [{key: value for key, value in row.items() if key != "source"} for row in rows]
        assert not given.model.training
        assert {weight.dtype for weight in given.model.parameters()} == {torch.float32}
        assert given.model.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize("index", range(4))
def test_logits_are_those_that_were_packed(loaded, backbones, index):
    """To the bit: of MiniLM's layers in float16, of e5's as they were."""
    given = loaded[index]
    source = given.name.split()[0]
    packed = with_all_words(given, backbones[source], half=source == "minilm")
    assert torch.equal(logits_of(given.model, given), logits_of(packed, given))


def test_only_used_words_are_carried(loaded, tokenizer):
    words = loaded[0].model.bert.embeddings.word_embeddings.weight
    unused = words[tokenizer.convert_tokens_to_ids(UNUSED)]
    assert not unused.any()
    assert words[tokenizer.convert_tokens_to_ids(["good", "soup", *tokenizer.all_special_tokens[:2]])].any(1).all()


@pytest.mark.parametrize("index", range(4))
def test_exits_are_trained_on_what_is_carried(loaded, backbones, data, index):
    """On rows whose words need not be carried, through the layers as they are stored: to the bit."""
    given = loaded[index]
    assert min(accuracies(given)) > 0.9
    source, name = given.name.split()
    packed = with_all_words(given, backbones[source], half=source == "minilm")
    rows = read_rows(data / name / "train.jsonl")
    found = TextDataset(rows, Encoder(given.tokenizer, **OPTIONS), given.model.config.label2id)
    for head, states in zip(given.model.heads.values(), mean_states(packed, found.tokens, 0), strict=True):
        weight, bias = fit_linear(states, torch.tensor(found.labels), 2)
        assert torch.equal(head.classifier.weight, weight.half().float())
        assert torch.equal(head.classifier.bias, bias.half().float())


@pytest.mark.parametrize("index", range(4))
def test_the_table_is_the_one_that_the_library_builds(loaded, backbones, data, index):
    given = loaded[index]
    source, name = given.name.split()
    packed = with_all_words(given, backbones[source], half=source == "minilm")
    rows = read_rows(data / name / "train.jsonl")
    expected = build_exit_table(packed, given.tokenizer, rows, 0.3, ngram=2, learn=(), progress=False, **OPTIONS)
    assert given.model.exit_table.digest() == expected.digest()
    assert given.model.exit_table.records is None
    layers = Engine(given.model, given.tokenizer, "predicted", **OPTIONS).predict(given.rows).exit_layers
    assert set(layers.tolist()) <= {1, 2}


def four_bit_weight(rows: int = 5, columns: int = 96) -> torch.Tensor:
    """Codes at random times scales of both signs, one of them 0, one so that no weight is 8 scales."""
    codes = torch.randint(0, 16, (rows, columns // 32, 32))
    codes[..., 0] = 0
    codes[1, 1] = codes[1, 1].clamp(3, 12)
    scales = torch.randn(rows, columns // 32, 1).half().float()
    scales[2, 0], codes[2, 0] = 0, 8
    scales[3, 0] = 2.0**-24  # the smallest of float16
    return (scales * (codes.float() - 8)).flatten(1)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


def test_four_bits_give_back_every_bit():
    weight = four_bit_weight()
    codes, scales = four_bits(weight)
    assert (codes.dtype, codes.shape, scales.dtype, scales.shape) == (torch.uint8, (5, 48), torch.float16, (5, 3))
    assert torch.equal(bits(from_four_bits(codes, scales)), bits(weight))


@pytest.mark.parametrize("change", ["one bit more", "zeros of both signs", "17 steps"])
def test_what_is_not_exact_in_four_bits_is_not_stored_so(change):
    weight = four_bit_weight()
    assert set(pack({"w": weight})) == {"w" + CODES, "w" + SCALES}
    if change == "one bit more":
        weight[4, 7] = torch.nextafter(weight[4, 7], torch.tensor(torch.inf))
    elif change == "zeros of both signs":
        weight[4, 7:9] = torch.tensor([0.0, -0.0])
    else:
        weight[4, :17] = torch.arange(-8.0, 9.0)
    assert four_bits(weight) is None
    packed = pack({"w": weight})
    assert set(packed) == {"w"}
    assert packed["w"].dtype == torch.float16
    assert torch.equal(unpack(packed)["w"], weight.half().float())


def test_four_bits_need_whole_blocks():
    assert four_bits(four_bit_weight()[:, :48]) is None


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_float16_must_hold_a_weight(value):
    with pytest.raises(ValueError, match="bias holds NaN or values outside float16"):
        pack({"bias": torch.tensor([0.0, value])})


def test_size_is_limited(tmp_path, data, backbones):
    folder = tmp_path / "small"
    with pytest.raises(ValueError, match="more than the 20000 allowed"):
        make_inputs(folder, data, backbones, SETS, most_bytes=20_000)
    with pytest.raises(ValueError, match=f"{CONTENTS} is missing"):
        load_inputs(folder)
    with pytest.raises(ValueError, match="folder must be new or empty"):
        make_inputs(folder, data, backbones, SETS)


@pytest.mark.parametrize("name", [CONTENTS, "minilm.zip", "e5.zip", "moods.jsonl", "pairs.jsonl"])
def test_a_missing_or_shortened_file_is_named(tmp_path, made, name):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / name).read_bytes()
    if name != CONTENTS:
        (tmp_path / name).write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=rf"{name} is of {len(whole) - 1} bytes, expected {len(whole)} bytes"):
            load_inputs(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_inputs(tmp_path)


def test_rows_are_spread_over_the_file():
    rows = [{"text": str(index)} for index in range(10)]
    assert [row["text"] for row in spread(rows, 4)] == ["0", "2", "5", "7"]
    assert spread(rows, 20) == rows
