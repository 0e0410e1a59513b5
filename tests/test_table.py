"""The exit table: built, rebuilt, merged, saved, refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from geep_triton.ops.backend import VARIABLE, has_triton, interprets
from geep_triton.ops.hash_table import lookup
from geep_triton.ops.predict_exits import ScoreTable
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint, uncounted_ids
from geep_triton.table.records import ExitRecords, TableSettings
from geep_triton.tokens.ragged import Tokens

EXITS = (1, 2, 4)
SAMPLES = [[2, 7, 8, 3], [2, 7, 7, 3], [2, 9, 3, 8, 3], [2, 3], [2, 10, 9, 8, 7, 3]]
UNCERTAINTY = torch.tensor([[0.2, 0.1, 0.0], [0.9, 0.3, 0.2], [0.9, 0.8, 0.9], [0.5, 0.5, 0.5], [0.31, 0.2, 0.1]])


def make(samples=SAMPLES, uncertainty=UNCERTAINTY, **changes) -> ExitTable:
    settings = TableSettings(**{"threshold": 0.3, **changes.pop("settings", {})})
    values = {"exit_layers": EXITS, "vocab_size": 40, "fingerprint": "f", "special_ids": (0, 2, 3)}
    records = ExitRecords(Tokens.from_lists(samples), uncertainty)
    return ExitTable.from_records(records, settings=settings, **{**values, **changes})


def same(a: ExitTable, b: ExitTable) -> bool:
    pairs = ((a.keys, b.keys), (a.counts, b.counts), (a.exit_counts, b.exit_counts))
    return a.settings == b.settings and all(torch.equal(x, y) for x, y in pairs)


def grams(ids, ngram):
    """Tokens, and from 2 on also pairs of neighbours, without special tokens."""
    pairs = pairwise(ids) if ngram > 1 else ()
    return [i for i in ids if i not in (2, 3)] + [pair for pair in pairs if not {2, 3} & set(pair)]


def counted(ngram):
    exits = [0, 1, 2, 2, 1]  # first exit at or under .3, else the last
    return Counter((gram, e) for ids, e in zip(SAMPLES, exits, strict=True) for gram in grams(ids, ngram))


def test_counts_are_tokens_by_first_sure_exit():
    table = make(settings={"ngram": 1})
    expected = counted(1)
    assert table.keys.tolist() == [7, 8, 9, 10]
    for row, key in enumerate(table.keys.tolist()):
        assert table.counts[row].tolist() == [expected[key, e] for e in range(3)]
    assert table.exit_counts.tolist() == [1, 2, 2]


def test_by_default_pairs_of_neighbours_are_counted_too():
    table = make()
    assert table.settings.ngram == 2
    expected = counted(2)
    rows = [[expected[gram, e] for e in range(3)] for gram in {gram for gram, _ in expected}]
    assert len(rows) == 4 + 5
    assert sorted(table.counts.tolist()) == sorted(rows)


def test_scores_are_smoothed_towards_the_prior():
    table = make(settings={"smoothing": 2.0})
    prior = torch.tensor([0.2, 0.4, 0.4])
    torch.testing.assert_close(table.scores[-1], prior)
    for row, count in enumerate(table.counts.float()):
        torch.testing.assert_close(table.scores[row], (count + 2 * prior) / (count.sum() + 2))
    torch.testing.assert_close(table.scores.sum(1), torch.ones(len(table.keys) + 1))


def test_unseen_and_missing_tokens_give_the_prior():
    table = make()
    probabilities = table.predict(Tokens.from_lists([[2, 30, 31, 3], [2, 3]])).probabilities
    torch.testing.assert_close(probabilities, table.scores[-1].expand(2, 3))


@pytest.mark.parametrize("ngram", [1, 2])
def test_prediction_by_hand(ngram):
    """Mean of the tokens' (and pairs') smoothed distributions, then the most probable exit."""
    table = make(settings={"ngram": ngram})
    prior, counts = [0.2, 0.4, 0.4], counted(ngram)

    def score(gram):
        row = [counts[gram, e] for e in range(3)]
        return [(c + p) / (sum(row) + 1) for c, p in zip(row, prior, strict=True)]

    for ids in ([2, 7, 8, 3], [2, 9, 30, 3], [2, 8, 8, 10, 3], [2, 7, 7, 3, 10, 9, 3]):
        found = grams(ids, ngram)
        mean = [sum(score(gram)[e] for gram in found) / len(found) for e in range(3)]
        predicted = table.predict(Tokens.from_lists([ids]))
        torch.testing.assert_close(predicted.probabilities, torch.tensor([mean]))
        assert predicted.exits.tolist() == [EXITS[mean.index(max(mean))]]


@given(st.floats(0, 1), st.integers(1, 3))
def test_rebuild_equals_building_anew(threshold, ngram):
    rebuilt = make().rebuild(threshold=threshold, ngram=ngram)
    assert same(rebuilt, make(settings={"threshold": threshold, "ngram": ngram}))


@given(st.integers(1, 4), st.integers(1, 3))
def test_merge_equals_building_from_both(cut, ngram):
    settings = {"ngram": ngram}
    merged = make(SAMPLES[:cut], UNCERTAINTY[:cut], settings=settings).merge(
        make(SAMPLES[cut:], UNCERTAINTY[cut:], settings=settings)
    )
    whole = make(settings=settings)
    assert same(merged, whole)
    assert same(merged.rebuild(threshold=0.85), whole.rebuild(threshold=0.85))


@pytest.fixture
def kernels_run(monkeypatch):
    """Names of the Triton kernels that ran since, all of which may run here; and where they do."""
    if not has_triton() or not (torch.cuda.is_available() or interprets()):
        pytest.skip("needs Triton, and a GPU or its interpreter")
    from geep_triton.ops.kernels import launching

    names, launch = [], launching.launch
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.setattr(launching, "launch", lambda kernel, *a, **b: (names.append(kernel.__name__), launch(kernel, *a, **b)))
    return names, "cpu" if interprets() else "cuda"


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_kernels_count_as_pytorch_does(ngram, kernels_run, monkeypatch):
    names, device = kernels_run
    table = make(settings={"ngram": ngram}, device=device)
    again = make(device=device).rebuild(ngram=ngram, device=device)
    assert set(names) == {"insert_add_kernel"}
    assert table.keys.device.type == table.counts.device.type == "cpu"
    monkeypatch.setenv(VARIABLE, "torch")
    assert same(table, make(settings={"ngram": ngram}))
    assert same(again, table)


@pytest.mark.parametrize("reduction", ["mean", "naive_bayes"])
def test_kernels_lay_scores_out_as_pytorch_does(reduction, kernels_run, monkeypatch):
    names, device = kernels_run
    ids = torch.randint(4, 40, (200, 9)).tolist()
    table = make(ids, torch.rand(200, 3), settings={"ngram": 2, "reduction": reduction}, device=device)
    names.clear()
    ours = table.score_table(device)
    assert names == ["insert_add_kernel", "lookup_kernel"]
    assert {value.device.type for value in vars(ours).values() if isinstance(value, torch.Tensor)} == {device}
    monkeypatch.setenv(VARIABLE, "torch")
    theirs = ScoreTable.build(table.keys, table.scores, EXITS, (0, 2, 3), 40, 2, reduction)
    longer = table.keys[table.keys < 0]
    assert longer.numel() > 500
    for name in ("uncounted", "unigrams", "prior", "layers"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name
    # A key may stand in another slot; its scores may not differ.
    mine, others = (built.ngrams[lookup(built.slots, built.probes, longer.to(built.slots.device))] for built in (ours, theirs))
    assert torch.equal(mine.cpu(), others)
    assert torch.equal(ours.ngrams[-1].cpu(), theirs.ngrams[-1])


def test_tables_without_records_predict_and_merge_but_do_not_rebuild():
    small = make().without_records()
    tokens = Tokens.from_lists(SAMPLES)
    assert torch.equal(small.predict(tokens).exits, make().predict(tokens).exits)
    assert small.merge(make()).exit_counts.sum() == 10
    assert small.rebuild(smoothing=3.0).settings.smoothing == 3.0
    learning = [lambda what=what: small.learn(what) for what in ("agreement", "exits", "skips")]
    for needs in (lambda: small.rebuild(threshold=0.5), *learning):
        with pytest.raises(ValueError, match="has no records of its texts .* save_records=True"):
            needs()
    with pytest.raises(ValueError, match=r"records\.agrees"):
        make().learn("agreement")
    with pytest.raises(ValueError, match=r"records\.skipped"):
        make().learn("skips")


@pytest.mark.parametrize("ngram", [1, 2])
@pytest.mark.parametrize("keep", [True, False])
def test_save_and_load(tmp_path, ngram, keep):
    table = make(settings={"ngram": ngram, "reduction": "naive_bayes"})
    table = replace(table, save_records=keep)
    table.save_pretrained(tmp_path)
    loaded = ExitTable.load(tmp_path)
    assert same(loaded, table)
    assert torch.equal(loaded.text_hashes, table.text_hashes)
    assert (loaded.exit_layers, loaded.special_ids, loaded.fingerprint) == (EXITS, (0, 2, 3), "f")
    assert (loaded.records is not None) == keep
    if keep:
        assert same(loaded.rebuild(threshold=0.7), table.rebuild(threshold=0.7))
        loaded.rebuild(threshold=0.7).save_pretrained(tmp_path)
        assert ExitTable.load(tmp_path).records is not None
    loaded.without_records().save_pretrained(tmp_path)
    assert ExitTable.load(tmp_path).records is None
    assert [path.name for path in tmp_path.iterdir()] == ["exit_table.safetensors"]


def test_a_file_holds_no_ids_of_texts_unasked(tmp_path):
    table = make()
    table.save_pretrained(tmp_path)
    with safe_open(tmp_path / "exit_table.safetensors", "pt") as file:
        assert set(file.keys()) == {"keys", "counts", "exit_counts", "text_hashes"}
    known = Tokens.from_lists([*SAMPLES, [2, 9, 9, 9, 3]]).hashes()
    assert torch.isin(known, ExitTable.load(tmp_path).text_hashes).tolist() == [True] * len(SAMPLES) + [False]
    both = ExitTable.load(tmp_path).merge(make([[2, 9, 9, 9, 3]], UNCERTAINTY[:1]))
    assert torch.isin(known, both.text_hashes).all()
    assert table.merge(replace(table, text_hashes=None)).text_hashes is None


def test_files_of_earlier_versions_hold_records_and_no_hashes(tmp_path):
    table = make()
    replace(table, save_records=True, text_hashes=None).save_pretrained(tmp_path)
    loaded = ExitTable.load(tmp_path)
    assert torch.equal(loaded.text_hashes, table.text_hashes)
    assert loaded.save_records


def test_pairs_keep_their_segments(tmp_path):
    tokens = Tokens.from_lists([[2, 7, 3, 8, 3]], [[0, 0, 0, 1, 1]])
    records = ExitRecords(tokens, UNCERTAINTY[:1])
    table = ExitTable.from_records(records, EXITS, TableSettings(0.3), 40, "f", (0, 2, 3))
    replace(table, save_records=True).save_pretrained(tmp_path)
    assert torch.equal(ExitTable.load(tmp_path).records.tokens.type_ids, tokens.type_ids)
    merged = table.merge(make())
    assert merged.records.tokens.type_ids[: tokens.ids.numel()].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 41}, "same vocab_size, got 40 and 41"),
        ({"fingerprint": "g"}, "same fingerprint"),
        ({"exit_layers": (1, 2, 5)}, "same exit_layers"),
        ({"settings": {"threshold": 0.4}}, "same settings"),
    ],
)
def test_merge_refuses_strangers(changes, message):
    with pytest.raises(ValueError, match=message):
        make().merge(make(**changes))


def test_check_fits():
    table = make()
    table.check_fits(40, [1, 2, 4], "f")
    with pytest.raises(ValueError, match="vocabulary of 40, the model has 50"):
        table.check_fits(50, [1, 2, 4])
    with pytest.raises(ValueError, match=r"exits at \[1, 2, 4\], the model has \[1, 2, 3, 4\]"):
        table.check_fits(40, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="another tokenizer"):
        table.check_fits(40, [1, 2, 4], "g")


@pytest.mark.parametrize(
    ("uncertainty", "message"),
    [
        (UNCERTAINTY[:, :2], r"must have shape \(5, 3\), got \(5, 2\)"),
        (torch.full((5, 3), torch.nan), "holds NaN"),
    ],
)
def test_bad_records(uncertainty, message):
    with pytest.raises(ValueError, match=message):
        make(uncertainty=uncertainty)


def test_no_records():
    with pytest.raises(ValueError, match="at least one sample"):
        make([], torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.1}, "threshold"),
        ({"ngram": 0}, "ngram must be at least 1"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"smoothing": float("inf")}, "smoothing"),
        ({"reduction": "sum"}, "unknown reduction 'sum'; known: mean, naive_bayes"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TableSettings(**{"threshold": 0.3, **settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("counts"), "missing tensors counts"),
        (lambda t: t.update(counts=t["counts"][:-1].contiguous()), "counts must be int64 of shape"),
        (lambda t: t.update(exit_counts=t["exit_counts"].float()), "exit_counts must be int64"),
        (lambda t: t.update(keys=t["keys"].flip(0).contiguous()), "keys must be distinct and ascending"),
    ],
)
def test_load_refuses_tables_that_would_mispredict(tmp_path, change, message):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path)
    path = tmp_path / "exit_table.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        ExitTable.load(tmp_path)


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="no such exit table"):
        ExitTable.load(tmp_path)
    from safetensors.torch import save_file

    save_file({"keys": torch.zeros(1)}, tmp_path / "exit_table.safetensors")
    with pytest.raises(ValueError, match="is not an exit table"):
        ExitTable.load(tmp_path)


def test_fingerprint_tells_tokenizers_apart(tokenizer, tmp_path):
    from transformers import AutoTokenizer, BertTokenizer

    from tests.conftest import WORDS

    fingerprint = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == fingerprint
    vocab = {word: index for index, word in enumerate(WORDS)}
    assert tokenizer_fingerprint(BertTokenizer(vocab=vocab, do_lower_case=False)) != fingerprint
    assert tokenizer_fingerprint(BertTokenizer(vocab=vocab | {"new": len(vocab)})) != fingerprint
    assert set(uncounted_ids(tokenizer)) == {0, 2, 3, 4}


def test_any_smoothing_keeps_scores_a_distribution():
    """Else a text would leave at the first exit, all being equally unlikely."""
    for smoothing in (0.0, 1e-300, 1e38, 1e39, 1.7e308):
        scores = make().rebuild(smoothing=smoothing).scores
        torch.testing.assert_close(scores.sum(1), torch.ones(len(scores)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_values_are_learned_whatever_the_caller_does_about_gradients(mode):
    generator = torch.Generator().manual_seed(0)
    records = ExitRecords(
        Tokens.from_lists(torch.randint(4, 40, (40, 5), generator=generator).tolist()),
        torch.rand(40, 3, generator=generator),
        torch.rand(40, 3, generator=generator) > 0.5,
    )

    def learned():
        table = ExitTable.from_records(records, EXITS, TableSettings(0.3), 40, "f", (0, 2, 3))
        return table.learn("agreement", epochs=2).learn("exits", epochs=2).digest()

    expected = learned()
    with mode():
        assert learned() == expected
