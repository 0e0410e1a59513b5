"""Which attention kernels run, and what mask they are given."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn import functional as F

from geep_triton import Engine, audit
from geep_triton.modeling.model import MASK_ALIGNMENT
from geep_triton.runners.attention import attention_kernels
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.padded import PaddedRunner


def cudnn() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture
def seen(monkeypatch) -> list[bool]:
    """Whether cuDNN's attention was allowed, at each call of SDPA."""
    seen, attend = [], F.scaled_dot_product_attention

    def watched(*arguments, **options):
        seen.append(cudnn())
        return attend(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


@pytest.mark.parametrize("allowed", [False, True])
def test_all_that_the_engine_runs_is_kept_from_cudnn(model, tokenizer, many, seen, allowed):
    assert cudnn()
    engine = Engine(model, tokenizer, "threshold:0.8", runner=PaddedRunner(model, cudnn_attention=allowed))
    runs = {
        "costs": lambda: engine.layer_costs,
        "predict": lambda: engine.predict(many),
        "every exit": lambda: engine.every_exit(many),
        "audit": lambda: (audit(engine, rate=0.5), engine.predict(many)),
    }
    for name, run in runs.items():
        seen.clear()
        run()
        assert seen, name
        assert set(seen) == {allowed}, name
        assert cudnn(), name


@pytest.mark.parametrize("allowed", [False, True])
def test_layers_are_compiled_without_cudnn(model, allowed):
    found = []

    def backend(graph, example_inputs):
        found.append(cudnn())
        return graph.forward

    CompiledRunner(model, backend=backend, cudnn_attention=allowed)
    assert set(found) == {allowed}
    assert cudnn()


def test_an_error_gives_the_switch_back():
    found = []

    def breaks():
        with attention_kernels(cudnn=False):
            found.append(cudnn())
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        breaks()
    assert found == [False]
    assert cudnn()


def test_the_switch_stays_as_the_user_had_it():
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with attention_kernels(cudnn=False):
            pass
        assert not cudnn()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_whoever_leaves_first_leaves_it_off_for_the_others():
    """torch's switch is one for all threads: of two that overlap, the first to end must not turn it on."""
    inside, leave, done = threading.Event(), threading.Event(), threading.Event()

    def other():
        with attention_kernels(cudnn=False):
            inside.set()
            leave.wait(10)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    with attention_kernels(cudnn=False):
        leave.set()
        assert done.wait(10)
        assert not cudnn()
    thread.join()
    assert cudnn()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_the_mask_is_added_and_its_rows_begin_at_whole_16_values(model, dtype, length):
    attention_mask = (torch.arange(length) < torch.randint(1, length + 1, (5, 1))).long()
    mask = model.layer_mask(torch.randn(5, length, 32, dtype=dtype), attention_mask)
    assert mask.dtype == dtype
    assert mask.shape == (5, 1, 1, length)
    assert all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1])
    assert mask.stride()[-1] == 1
    query = torch.randn(5, 4, length, 8, dtype=dtype)
    expected = F.scaled_dot_product_attention(query, query, query, attn_mask=attention_mask.bool()[:, None, None])
    assert torch.equal(F.scaled_dot_product_attention(query, query, query, attn_mask=mask), expected)


def test_layers_share_one_mask_a_batch(model, tokenizer, texts, monkeypatch):
    given, attend = [], F.scaled_dot_product_attention

    def watched(*arguments, attn_mask=None, **options):
        given.append(attn_mask)
        return attend(*arguments, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    Engine(model, tokenizer).predict(texts)
    of_layers = given[: model.config.num_hidden_layers]
    assert all(mask.is_floating_point() for mask in of_layers)
    assert len({mask.data_ptr() for mask in of_layers}) == 1


def counting_backend(graphs):
    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return backend


def test_samples_of_one_token_do_not_compile_a_layer_again(make_model):
    model, graphs = make_model(), []
    other = CompiledRunner(model, backend=counting_backend(graphs))
    known = len(graphs)
    with torch.inference_mode():
        for samples in (1, 3):
            hidden = torch.randn(samples, 1, 32)
            mask = model.layer_mask(hidden, torch.ones(samples, 1, dtype=torch.int64))
            for given in (None, mask):
                torch.testing.assert_close(other.run_layer(2, hidden, given), model.run_layer(2, hidden, given))
    assert len(graphs) == known


def test_layers_that_must_compile_again_may(make_model):
    """Under no_grad, and on other strides, until there are more graphs than torch allows by itself."""
    model, graphs = make_model(), []
    other = CompiledRunner(model, backend=counting_backend(graphs))
    spaced = torch.randn(8, 6, 64)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for hidden in (
                torch.randn(3, 6, 32),
                torch.randn(1, 6, 32),
                spaced[:3, :, :32],
                spaced[:3, :5, 32:],
                spaced[:1, :, ::2],
            ):
                mask = model.layer_mask(hidden, torch.ones(hidden.shape[:2], dtype=torch.int64))
                for given in (None, mask, mask.expand(-1, -1, hidden.shape[1], -1)):
                    torch.testing.assert_close(other.run_layer(2, hidden, given), model.run_layer(2, hidden, given))
    assert len(graphs) > 8
