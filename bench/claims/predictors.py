"""Measure how well tokens predict exits: counts and learned values beside predictors that cost nothing.

    python -m bench.claims.predictors --model runs/sst2 --name sst2 --train sst2/train.jsonl --test sst2/test.jsonl
    python -m bench.claims.predictors --flags --tokenizer runs/sst2 --name snli_12_exits --train ... --test ...

Every predictor ranks the test texts from easy to hard. The ranks then get the exits that the threshold takes on these texts, in
the same numbers. So all predictors have the same mean depth, and only their order is judged. HashEE's frequency map (Sun et al.
2022) sends rare tokens deeper, and a text's rank is the mean over its tokens. With `--flags` the labels are lists with one flag
per exit of another model: whether it is right there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.cells import Cell, declared, run_missing
from bench.claims.metrics import spearman
from bench.claims.predictor_report import accuracy_at_depth
from bench.environment import RESULTS
from bench.pipeline.systems import targets
from bench.rows import Found, found
from geep_triton import Engine, MultiExitBert
from geep_triton.files.rows import read_rows
from geep_triton.ops.exit_scores import score_exits
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint, uncounted_ids
from geep_triton.table.records import ExitRecords, TableSettings, first_sure_exit
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import iter_samples

AMOUNTS = (500, 2000, 8000, 20000)
NGRAMS = (1, 2, 3)
SEEDS = 20  # of the random order


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a trained MultiExitBert")
    parser.add_argument("--flags", action="store_true", help="the labels say at which exits a model was right")
    parser.add_argument("--tokenizer", help="default: the model's")
    parser.add_argument("--name", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--test-samples", type=int, default=3000)
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS / "predictors.jsonl")
    arguments = parser.parse_args()
    if (arguments.model is None) != arguments.flags:
        parser.error("give either --model, or --flags and --tokenizer")
    return arguments


class Recorded:
    """Texts with every exit's uncertainty [N, E], whether it is right [N, E], and whether it gives the last one's answer."""

    def __init__(self, tokens: Tokens, uncertainty: torch.Tensor, right: torch.Tensor, agrees: torch.Tensor) -> None:
        self.tokens, self.uncertainty, self.right, self.agrees = tokens, uncertainty, right, agrees


def run(model: MultiExitBert, tokenizer, rows: list[dict], max_length: int) -> Recorded:
    """Run every exit."""
    engine = Engine(model, tokenizer, "full", truncation=True, max_length=max_length, progress=True)
    record = engine.every_exit(rows)
    logits = record.logits
    uncertainty = score_exits(logits.flatten(0, 1), 1.0).uncertainty.view(logits.shape[:2])
    answers = logits.argmax(-1)
    right = answers == targets(rows, model.config.label2id)[:, None]
    return Recorded(record.tokens, uncertainty, right, answers == answers[:, -1:])


def read_flags(tokenizer, rows: list[dict], max_length: int) -> Recorded:
    """A text is sure from the first exit on that is right; agreement is being right or wrong as the last exit is."""
    right = torch.tensor([row["label"] for row in rows]).bool()
    tokens = Encoder(tokenizer, max_length, truncation=True)(list(iter_samples(rows)), 0)
    return Recorded(tokens, 1.0 - right.float().cummax(1).values, right, right == right[:, -1:])


def table_of(records: Recorded, count: int, ngram: int, threshold: float, tokenizer) -> ExitTable:
    """From the first `count` texts."""
    part = torch.arange(min(count, len(records.tokens)))
    kept = ExitRecords(records.tokens.select(part), records.uncertainty[part], records.agrees[part])
    exits = tuple(range(1, records.right.shape[1] + 1))
    special = uncounted_ids(tokenizer)
    return ExitTable.from_records(
        kept, exits, TableSettings(threshold, ngram), len(tokenizer), tokenizer_fingerprint(tokenizer), special
    )


def mean_rank(probabilities: torch.Tensor) -> torch.Tensor:
    """Expected exit [N] of distributions [N, E]."""
    return (probabilities * torch.arange(probabilities.shape[1])).sum(1)


def frequency_depth(train: Tokens, test: Tokens, special: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """HashEE's frequency map: a text's mean token rank by frequency in the training texts, rare ones last."""
    counts = torch.bincount(train.ids, minlength=vocab_size)
    rank = counts.argsort(descending=True).argsort().double()
    counted = ~torch.isin(test.ids, special)
    owner = torch.repeat_interleave(torch.arange(len(test)), test.lengths)[counted]
    total = torch.zeros(len(test), dtype=torch.float64).index_add_(0, owner, rank[test.ids[counted]])
    return total / torch.bincount(owner, minlength=len(test)).clamp(min=1)


def judge(score: torch.Tensor, test: Recorded, actual: torch.Tensor) -> dict[str, float]:
    """A ranking [N], low is easy, against the exits [N] that the threshold takes."""
    given = torch.empty_like(actual)
    given[score.argsort(stable=True)] = actual.sort().values
    return {
        "rank_correlation": spearman(score, actual.double()),
        "exact_match": float((given == actual).double().mean()),
        "agreement": float(test.agrees.gather(1, given[:, None]).double().mean()),
        "accuracy": float(test.right.gather(1, given[:, None]).double().mean()),
    }


def baselines(train: Recorded, test: Recorded, actual: torch.Tensor, tokenizer) -> list[Found]:
    """What knows the texts' lengths and words' frequencies only, or nothing; and the exits themselves."""
    special = torch.tensor(uncounted_ids(tokenizer))
    rankings = {
        "text length": test.tokens.lengths.double(),
        "HashEE's frequency map": frequency_depth(train.tokens, test.tokens, special, len(tokenizer)),
    }
    rows = [found(name, judge(score, test, actual)) for name, score in rankings.items()]
    generator = torch.Generator().manual_seed(0)
    random = [judge(torch.rand(len(actual), generator=generator), test, actual) for _ in range(SEEDS)]
    rows.append(found("random", {key: sum(r[key] for r in random) / SEEDS for key in random[0]}))
    depth, exits = float(actual.double().mean()), torch.arange(test.right.shape[1])
    flags = {"agreement": test.agrees, "accuracy": test.right}
    constant = {name: accuracy_at_depth(each.double().mean(0), exits, depth) for name, each in flags.items()}
    rows.append(found("constant depth", constant))
    rows.append(found("the threshold itself", judge(actual.double(), test, actual)))
    return rows


def measured(arguments: argparse.Namespace) -> list[Found]:
    """Every predictor, over tables of several sizes."""
    train_rows, test_rows = read_rows(arguments.train)[: max(AMOUNTS)], read_rows(arguments.test)[: arguments.test_samples]
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.model)
    threshold = 0.5 if arguments.flags else arguments.threshold
    if arguments.flags:
        train, test = (read_flags(tokenizer, rows, arguments.max_length) for rows in (train_rows, test_rows))
    else:
        model = MultiExitBert.from_pretrained(arguments.model)
        train, test = (run(model, tokenizer, rows, arguments.max_length) for rows in (train_rows, test_rows))
    actual = first_sure_exit(test.uncertainty.clone(), threshold)
    rows = baselines(train, test, actual, tokenizer)
    amounts = sorted({min(amount, len(train_rows)) for amount in AMOUNTS})
    for amount, ngram in tqdm([(amount, ngram) for amount in amounts for ngram in NGRAMS]):
        table = table_of(train, amount, ngram, threshold, tokenizer).learn("agreement").learn("exits")
        rankings = {
            "counts": mean_rank(table.predict(test.tokens).probabilities),
            "learned exits": mean_rank(table.predict(test.tokens, values="learned").probabilities),
            "learned agreement": -table.predict_agreement(test.tokens).sum(1),
        }
        rows += [found(name, judge(score, test, actual), texts=amount, ngram=ngram) for name, score in rankings.items()]
    facts = {
        "texts": {"test": len(test_rows), "train": len(train_rows)},
        "num_exits": test.right.shape[1],
        "mean_exit": float(actual.double().mean()) + 1,
    }
    return [found("", facts), *rows]


def main() -> None:
    arguments = parse_arguments()
    run_missing("predictors", [Cell(arguments.name, declared(arguments), lambda _: measured(arguments))], arguments.output)


if __name__ == "__main__":
    main()
