"""The engine on a GPU gives the CPU's answers."""

from __future__ import annotations

import copy

import pytest
import torch

from geep_triton import Engine, build_exit_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("policy", ["full", "constant:2", "threshold:0.8", "predicted", "predicted:mean"])
@pytest.mark.parametrize("token_budget", [40, 10_000])
def test_policy_on_gpu_equals_cpu(model, tokenizer, texts, policy, token_budget):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    expected = Engine(model, tokenizer, policy, token_budget=token_budget).predict(texts)
    on_gpu = copy.deepcopy(model).cuda()
    result = Engine(on_gpu, tokenizer, policy, token_budget=token_budget).predict(texts)
    assert result.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-4, rtol=0)
    assert result.logits.device.type == "cpu"
