"""FLOPs by formula against what PyTorch counts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from geep_triton.modeling.flops import gate_flops, head_flops, layer_flops


def counted(call) -> int:
    # The fused attention of a CPU is none that the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("head", ["attention", "pooler", "linear"])
@pytest.mark.parametrize("gate", ["attention", "mean"])
def test_of_many_samples_at_once(make_model, head, pooling, gate):
    """As runners without padding ask for them."""
    config = make_model(head=head, pooling=pooling, skip_gate=gate).config
    for flops in (partial(layer_flops, config), partial(head_flops, config, 1), partial(gate_flops, config)):
        assert flops(torch.tensor([1, 7, 20])).tolist() == [flops(tokens) for tokens in (1, 7, 20)]


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("head", ["attention", "pooler", "linear"])
@pytest.mark.parametrize("gate", ["attention", "mean"])
def test_formulas(make_model, head, pooling, gate, tokens):
    model = make_model(head=head, pooling=pooling, last_head="pooler", skip_gate=gate, skip_gate_size=8)
    hidden, mask = torch.randn(3, tokens, 32), torch.ones(3, tokens, dtype=torch.int64)
    assert counted(lambda: model.run_layer(1, hidden, None)) == 3 * layer_flops(model.config, tokens)
    assert counted(lambda: model.exit_logits(1, hidden, mask)) == 3 * head_flops(model.config, 1, tokens)
    assert counted(lambda: model.exit_logits(4, hidden, mask)) == 3 * head_flops(model.config, 4, tokens)
    # The gate's op is no matrix product of PyTorch's to the counter where it is one vector.
    assert counted(lambda: model.skip_gate(1, hidden, mask)) in {
        3 * gate_flops(model.config, tokens),
        3 * (gate_flops(model.config, tokens) - 2 * (8 if gate == "attention" else 32)),
    }
