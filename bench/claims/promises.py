"""Measure what each family of policies achieves under a promise. It is calibrated on some texts and measured on others.

    python -m bench.claims.promises --model runs/sst2 --name sst2 --dev dev.jsonl --test test.jsonl --train train.jsonl

Calibration texts are the dev rows and the first third of the test rows. Everything is reported on the rest of the test rows.
The exit table is built from training texts without their labels. Speed is the median of interleaved rounds at each token
budget, beside full depth in the same run, over texts that fill several batches. With `--add-budgets` the policies of a result
are measured at further token budgets. Two bounds give the speed-up that the saved layers allow: L / (mean layers of a text) and
L / (mean layers of a token). The second is the honest one if long texts stay longer.

A row of a policy has its promise. Rows with a token budget have its speed there, and rows with texts are about other texts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.cells import Cell, declared, file_of, run_missing
from bench.claims.curves import equal_depth
from bench.environment import RESULTS, environment, without_folders
from bench.pipeline.systems import targets
from bench.rates import rates
from bench.rows import Found, found, read, records, rows_of, save
from bench.rows import Row as StoredRow
from geep_triton import Engine, MultiExitBert, audit, build_exit_table, calibrate
from geep_triton.engine.predictions import EveryExit
from geep_triton.files.rows import read_rows
from geep_triton.policies.policy import OneExitWarning
from geep_triton.policies.start import FirstExit
from geep_triton.policies.text import parse_policy
from geep_triton.promises.families import TRIED, FitSamples, families_of
from geep_triton.promises.simulate import simulate
from geep_triton.tokens.columns import Row

VERIFIED = "predicted+threshold"  # GEEP's prediction, then a look
MACHINE = ("cpu", "threads", "gpu", "torch")  # of the environment: what one result has in common


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True, help="of the data set; with the model's seed it names the case")
    parser.add_argument("--seed", type=int, default=42, help="that the model was trained with")
    parser.add_argument("--dev", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--train", required=True, help="texts for the exit table; labels are not used")
    parser.add_argument("--shifted", nargs="+", default=[], help="other kinds of text, served under audit")
    parser.add_argument("--table-samples", type=int, default=20000)
    parser.add_argument("--calibration-samples", type=int, default=2000, help="at most")
    parser.add_argument("--ngram", type=int, default=1)
    parser.add_argument("--agreements", type=float, nargs="+", default=[0.99, 0.98, 0.95])
    parser.add_argument("--token-budgets", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--add-budgets", action="store_true", help="to the result file, which must be of this machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=2, help="of each token budget that the timed texts fill, at least")
    parser.add_argument("--speed-tokens", type=int, default=8192, help="that the timed texts have, at least")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS / "promises")
    return parser.parse_args()


class HeldOut:
    """Recorded exits of texts that no calibration saw; labels [N] int64, or None where they are of another task."""

    def __init__(self, model: MultiExitBert, record: EveryExit, labels: torch.Tensor | None) -> None:
        self.model, self.tokens, self.logits, self.labels = model, record.tokens, record.logits, labels
        self.answers = record.logits.argmax(-1)
        self.layers = torch.tensor(model.config.exit_layers)

    def judge(self, policy: Any) -> dict[str, float]:
        """Agreement, accuracy, and mean layers of a text and of a token."""
        exits = self.exits(policy)
        given = self.answers.gather(1, exits[:, None])[:, 0]
        accuracy = {} if self.labels is None else {"accuracy": float((given == self.labels).double().mean())}
        return {
            "agreement": float((given == self.answers[:, -1]).double().mean()),
            **accuracy,
            **self.mean_layers(exits, range(len(exits))),
        }

    def exits(self, policy: Any) -> torch.Tensor:
        """[N] int64, index of the exit at which each text is answered."""
        return simulate(self.model, policy, self.tokens, self.logits)

    def mean_layers(self, exits: torch.Tensor, rows: Sequence[int]) -> dict[str, float]:
        """Of a text and of a token, over `rows`."""
        layers, lengths = self.layers[exits][rows].double(), self.tokens.lengths[rows].double()
        return {
            "mean_layers": float(layers.mean()),
            "mean_layers_of_a_token": float((layers * lengths).sum() / lengths.sum()),
        }


def filling(lengths: torch.Tensor, tokens: int) -> list[int]:
    """Texts spread evenly over those of [N] lengths that have about so many tokens together; all where they have fewer."""
    wanted = min(len(lengths), math.ceil(len(lengths) * tokens / int(lengths.sum())))
    return [index * len(lengths) // wanted for index in range(wanted)]


def shares(speed_up: float, mean: dict[str, float], layers: int) -> dict[str, float]:
    """Of what the layers saved by the timed texts, of these means, allow."""
    bounds = {"share_of_bound": "mean_layers", "share_of_token_bound": "mean_layers_of_a_token"}
    return {name: speed_up * mean[of] / layers for name, of in bounds.items()}


def measured_at(
    budgets: dict[int, Engine],
    policies: Sequence[dict[str, Any]],
    held_out: HeldOut,
    test: list[Row],
    timed: dict[int, list[int]],
    rounds: int,
) -> Iterator[Found]:
    """Speed, speed-up and shares of what the saved layers allow, of each policy (family, promise, policy, chosen) of one
    promise at each token budget; and how full depth drifted there.
    """
    promise = policies[0]["promise"]
    for budget, engine in tqdm(budgets.items(), desc=f"agreement {promise}"):
        engines = {one["policy"]: engine.with_policy(one["policy"]) for one in policies}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OneExitWarning)
            by_form, drift = rates(engines, [test[row] for row in timed[budget]], rounds)
        yield found("full", {"drift": drift}, promise=promise, token_budget=budget)
        for one in policies:
            settings = {name: one[name] for name in ("promise", "policy", "chosen")}
            speed = speed_of(one["policy"], by_form, held_out, timed[budget])
            yield found(one["family"], speed, **settings, token_budget=budget)


def speed_of(form: str, by_form: dict[str, float], held_out: HeldOut, timed: list[int]) -> dict[str, float]:
    """A policy's samples a second, speed-up and shares of what the layers saved by the timed texts allow."""
    speed_up = by_form[form] / by_form["full"]
    own = held_out.mean_layers(held_out.exits(parse_policy(form)), timed)
    own |= shares(speed_up, own, held_out.model.config.num_hidden_layers)
    return {"samples_per_second": by_form[form], "speed_up": speed_up} | own


def add_budgets(
    known: Sequence[StoredRow],
    budgets: dict[int, Engine],
    held_out: HeldOut,
    test: list[Row],
    timed: dict[int, list[int]],
    rounds: int,
) -> list[StoredRow]:
    """Rows of the policies of a result at token budgets that it lacks.

    Raises:
        ValueError: the model, the texts or the machine are not those of the result, or it lacks none.
    """
    then, now = ({name: where[name] for name in MACHINE} for where in (known[0].environment, environment()))
    if then != now:
        raise ValueError(f"the result was measured on {then}, this is {now}")
    if not budgets:
        raise ValueError("the result has all of these token budgets")
    policies = [
        one | {"family": one["system"]}
        for one in records(known)
        if "policy" in one and not {"token_budget", "texts"} & one.keys()
    ]
    for one in policies:
        now = held_out.judge(parse_policy(one["policy"]))
        if any(not math.isclose(now[name], one[name], abs_tol=1e-6) for name in now):
            raise ValueError(f"{one['policy']}: {now} here, in the result {[one[name] for name in now]}")
    measured = [found("", {"speed_samples": len(rows)}, token_budget=budget) for budget, rows in timed.items()]
    for promise in sorted({one["promise"] for one in policies}, reverse=True):
        of_promise = [one for one in policies if one["promise"] == promise]
        measured += measured_at(budgets, of_promise, held_out, test, timed, rounds)
    measured.append(found("added", {"token_budgets": list(timed), "rounds": rounds}))
    return rows_of(known[0].suite, known[0].case, measured, known[0].config.get("declaration", {}), environment())


def curves(held_out: HeldOut, calibration: EveryExit, score_cost: float) -> dict[str, list[dict[str, float]]]:
    """Family -> its settings, from cautious to bold, on the held-out texts; fitted ones by the calibration's exits."""
    fit = FitSamples.of(calibration, held_out.model.config.exit_layers, score_cost, held_out.model.answers)
    families = [one for one in families_of(held_out.model, every=True) if one.name in (*TRIED, VERIFIED)]
    return {family.name: [held_out.judge(policy) for policy in family.policies(fit)] for family in families}


def audited(engine: Engine, agreement: float, rows: list[Row]) -> dict[str, Any]:
    """What an audit of half of these texts reports under the engine's policy."""
    served = engine.with_policy(engine.policy)
    running = audit(served, rate=0.5, promised=agreement)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served.predict([(row["text"], row.get("text_pair")) for row in rows])
    report = running.report()
    return {name: getattr(report, name) for name in ("samples", "agreement", "interval", "promised", "holds")}


def measured(arguments: argparse.Namespace, known: Sequence[StoredRow]) -> list[Found] | list[StoredRow]:
    """A calibration for each promise, and what its policies reach; with `--add-budgets` only the rows that are new."""
    settings = {"truncation": True, "max_length": arguments.max_length}
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = MultiExitBert.from_pretrained(arguments.model)
    required = ("text", "label")
    dev, test = (read_rows(path, required=required) for path in (arguments.dev, arguments.test))
    calibration, test = (dev + test[: len(test) // 3])[: arguments.calibration_samples], test[len(test) // 3 :]
    texts = read_rows(arguments.train, required=required)[: arguments.table_samples]
    model.exit_table = build_exit_table(
        model, tokenizer, texts, 0.3, ngram=arguments.ngram, learn=("agreement", "exits"), **settings
    )
    engine = Engine(model, tokenizer, "full", progress=True, **settings)
    held_out = HeldOut(model, engine.every_exit(test), targets(test, model.config.label2id))
    has = [row.config["token_budget"] for row in known if row.metric == "speed_samples"]
    timed = {
        budget: filling(held_out.tokens.lengths, max(arguments.batches * budget, arguments.speed_tokens))
        for budget in arguments.token_budgets
        if budget not in has
    }
    by_budget = {budget: Engine(model, tokenizer, "full", token_budget=budget, **settings) for budget in timed}
    if arguments.add_budgets:
        return add_budgets(known, by_budget, held_out, test, timed, arguments.rounds)
    found_curves = curves(held_out, engine.every_exit(calibration), engine.layer_costs.stop_layers)
    others = {Path(path).parent.name: read_rows(path)[: len(test)] for path in arguments.shifted}
    shifted = {
        name: HeldOut(model, engine.every_exit([(row["text"], row.get("text_pair")) for row in texts]), None)
        for name, texts in others.items()
    }
    reached = [found("", {"speed_samples": len(rows)}, token_budget=budget) for budget, rows in timed.items()]
    for agreement in arguments.agreements:
        calibration_of = calibrate(
            engine, calibration, agreement=agreement, rounds=1, speed_samples=len(timed[arguments.token_budgets[0]]), save=False
        )
        reached.append(found("", {"unsafe": list(calibration_of.unsafe)}, promise=agreement))
        forms = {candidate.policy: candidate.family for candidate in calibration_of.candidates}
        # The same thresholds with a batch that shrinks, to see what pooling is worth.
        plain = [form for form in forms if isinstance(parse_policy(form).start, FirstExit)]
        forms |= {f"{form},regroup=never": f"{forms[form]}, batch shrinks" for form in plain}
        for name, rows in {arguments.name: test, **others}.items():
            reached.append(found("audit", audited(engine, agreement, rows), promise=agreement, texts=name))
        policies = [
            {"promise": agreement, "family": family, "policy": form, "chosen": form == calibration_of.chosen.policy}
            for form, family in forms.items()
        ]
        for one in policies:
            policy, config = parse_policy(one["policy"]), {name: one[name] for name in ("promise", "policy", "chosen")}
            reached.append(found(one["family"], held_out.judge(policy), **config))
            reached += [found(one["family"], rows.judge(policy), **config, texts=name) for name, rows in shifted.items()]
        reached += measured_at(by_budget, policies, held_out, test, timed, arguments.rounds)
    facts = {
        "num_layers": model.config.num_hidden_layers,
        "texts": {"calibration": len(calibration), "test": len(test), "table": len(texts)},
        "training": without_folders(json.loads((Path(arguments.model) / "training.json").read_text())["arguments"]),
        "verified_less_threshold": equal_depth([(found_curves[VERIFIED], found_curves["threshold"])]),
    }
    for family, points in found_curves.items():
        reached.append(found(family, {"curve": {name: [point[name] for point in points] for name in points[0]}}))
    return [found("", facts), *reached]


def main() -> None:
    arguments = parse_arguments()
    name = f"{re.sub('[^a-z0-9_]', '_', arguments.name.lower())}_s{arguments.seed}"
    path = file_of(arguments.output, name)
    if arguments.add_budgets:
        known = read(path)
        save(path, [*known, *measured(arguments, known)])
        print(path)
        return
    run_missing("promises", [Cell(name, declared(arguments), lambda _: measured(arguments, []))], arguments.output)


if __name__ == "__main__":
    main()
