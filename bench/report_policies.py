"""The page on policies: exits, depths, promises and predictors. Made from result files."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.curves import equal_depth
from bench.environment import RESULTS
from bench.report_ops import read
from bench.report_pipeline import machine, percent

INTRODUCTION = """# Policies, measured

Made from the files in `bench/results` by `python -m bench.report`; `tests/test_report.py` holds it to them. Speed-up is wall
clock over the same engine at full depth in the same run. *Share of L / mean layers* is how much of the speed-up that the saved
layers allow was reached; where long texts stay longer, that of a token's mean layers is the honest bound.
"""
PREDICTOR_FIGURES = ("rank_correlation", "exact_match", "agreement", "accuracy")
PROMISE_HEAD = "| promised agreement | policy | seeds | agreement | accuracy | mean layers |"


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown."""
    parts = [INTRODUCTION]
    parts += ["## Promises", PROMISES, targets_section(promises(folder)), *filter(None, [larger_model(folder)])]
    parts += [promises_section(runs) for runs in promises(folder).values()]
    predictors = [read(path) for path in sorted((folder / "predictors").glob("*.json"))]
    parts += ["## Predictors", PREDICTORS, bigrams_section(predictors), *map(predictors_section, predictors)]
    parts += ["## Exits and policies, one by one"]
    parts += [policies_section(read(path)) for path in sorted(folder.glob("policies_*.json"))]
    parts += ["## Depth", *(depth_section(read(path)) for path in sorted(folder.glob("depth_*.json")))]
    return "\n\n".join(parts) + "\n"


PROMISES = """Calibrated on dev texts and a part of the test texts, measured on the others (`python -m bench.promises`): of
each family of policies the boldest setting that is shown to keep the promise with 95 % confidence; a family that is missing
has none. The models' checkpoints were chosen on the same dev texts, which makes those a little easier than new ones. Mean
over the seeds; in brackets the lowest and the highest. *Chosen* counts the seeds in which `calibrate`, at the engine's own
token budget, took the family; a promise that was not kept in all seeds says in how many. In brackets after a speed-up stands
how many seeds it is of, where it is not of all. Shares are those at the token budget at which most seeds were measured. The
texts that were timed are few: differences of a few hundredths are noise, and where they hold fewer tokens than a batch, that
token budget is one batch."""

TARGETS = """What was aimed at: *verified* exits within .3 points of threshold exits at the same mean depth, and the fastest of
all at small token budgets; and 95 % of L / mean layers in real time for what `calibrate` chooses.

What was tried: at first *verified* scored a sample where the table puts its likeliest exit. Where tokens tell little of it
(snli, yelp_stars) that plan spent the layers that thresholds save, and answered worse for the same mean depth. Now a sample
is first scored where a twentieth of those like it are expected to have left, since a score costs about a twentieth of a
layer; the table shows the difference that is left, and that both are about as fast. What is lost on the way to L / mean
layers are a head at each exit that is scored, what no layer does (tokenizing, embedding, moving survivors), and the smaller
batches of those who go deep; [PIPELINE.md](PIPELINE.md) has the parts. They weigh less where a layer is larger, as the lines
under the table show. Where long texts stay longer (sst2) only the mean layers of a token are a bound that can be reached."""

AUDIT = """The audit of the chosen policy, half of the texts: agreement, its interval for one look, and whether the promise is
shown to be broken, which is judged as if one looked after every text and therefore takes more of them:"""

PREDICTORS = """Every predictor ranks the test texts from easy to hard, and the ranks get the exits that the threshold takes on
these texts, as many of each, so that all have the same mean depth (`python -m bench.predictors`)."""


def larger_model(folder: Path = RESULTS) -> str:
    """What re-pooled policies reach of L / mean layers on BERT-base's shape; nothing while that is not measured."""
    lines = []
    for data in ("sst2", "ag_news"):
        path = folder / "pipeline" / f"throughput.cpu.base.{data}.float32.json"
        if not path.is_file():
            continue
        result = read(path)
        shares = [
            f"{row['system'].removeprefix('ours, ')} {percent(row, 'share_of_bound')}"
            for row in result["systems"]
            if row["system"].startswith(("ours, threshold, ", "ours, verified, "))
        ]
        lines.append(
            f"{result['layers']} layers of width {result['width']} over {result['texts']['samples']:,} texts of {data}, exits "
            f"replayed ({machine(result)}), reach of L / mean layers, in brackets of a token's: {'; '.join(shares)}."
        )
    return "\n\n".join(lines)


def promises(folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """Data set -> its result files, a seed each."""
    found = defaultdict(list)
    for path in sorted((folder / "promises").glob("*.json")):
        result = read(path)
        found[result["data"]["name"]].append(result)
    return dict(found)


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean, and in brackets the range where there is one."""
    values = list(values)
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low}-{high})"


def setting(runs: list[dict[str, Any]]) -> str:
    """Texts, machine, versions and date of some runs."""
    first, where = runs[0], runs[0]["environment"]
    training = first["training"]
    epochs = " or ".join(sorted({f"{run['training']['epochs']:g}" for run in runs}))
    added = [more for run in runs for more in run.get("added", [])]  # token budgets measured later
    dates = sorted({run["environment"]["date"] for run in [*runs, *added]})
    timed = alternatives(texts for run in runs for texts in timed_texts(run))
    rounds = alternatives([*(run["settings"]["rounds"] for run in runs), *(more["rounds"] for more in added)])
    return (
        f"{first['data']['calibration']:,} calibration texts, {first['data']['test']:,} others measured, exit table from "
        f"{first['data']['table']:,}; {first['num_layers']} layers, recipe `{training['recipe']}`, {epochs} epochs, at most "
        f"{first['settings']['max_length']} tokens; speed over {timed} texts in {rounds} rounds; {where['cpu']}, "
        f"{where['threads']} threads, torch {where['torch']}, "
        f"{' to '.join(sorted({dates[0], dates[-1]}))}"
    )


def timed_texts(run: dict[str, Any]) -> list[int]:
    """How many texts were timed, by token budget where that differed."""
    texts = run["settings"]["speed_samples"]
    return list(texts.values()) if isinstance(texts, dict) else [texts]


def alternatives(values: Iterable[int]) -> str:
    """Different values, ascending."""
    return " or ".join(map(str, sorted(set(values))))


def token_budgets(runs: list[dict[str, Any]]) -> list[str]:
    """All at which any of the runs was measured, ascending."""
    return sorted({budget for run in runs for budget in run["policies"][0]["speed"]}, key=int)


def measured(rows: list[dict[str, Any]], budget: str, figure: str) -> list[float]:
    """A figure of the speed of those rows that were measured at this token budget."""
    return [row["speed"][budget][figure] for row in rows if budget in row["speed"]]


def speed_up(rows: list[dict[str, Any]], budget: str) -> str:
    """Mean and range over the rows that were measured at this token budget."""
    found = measured(rows, budget, "speed_up")
    if not found:
        return "-"
    return f"{spread(found, 2)}x" + (f" [{len(found)}]" if len(found) < len(rows) else "")


def usual_budget(runs: list[dict[str, Any]]) -> str:
    """The token budget at which most runs were measured."""
    counts = Counter(budget for run in runs for budget in run["policies"][0]["speed"])
    return max(counts, key=lambda budget: (counts[budget], -int(budget)))


def targets_section(found: dict[str, list[dict[str, Any]]]) -> str:
    """What came of the targets, a line for each data set."""
    lines = [
        TARGETS,
        "",
        "| data | verified less threshold, points on average | worst depth, mean of seeds | worst of a seed | "
        "over mean layers | its speed over threshold's | share of L / mean layers, chosen | of a token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        compared = [run["verified_less_threshold"] for run in runs]
        chosen = [row for run in runs for row in run["policies"] if row["chosen"]]
        budget = usual_budget(runs)
        shares = (
            spread((100 * share for share in measured(chosen, budget, figure)), 0)
            for figure in ("share_of_bound", "share_of_token_bound")
        )
        low, high = min(one["from"] for one in compared), max(one["to"] for one in compared)
        points = [
            f"{100 * statistics.mean(one['mean'] for one in compared):+.2f}",
            f"{100 * equal_depth([(run['curves']['verified'], run['curves']['threshold']) for run in runs])['worst']:+.2f}",
            f"{100 * min(one['worst'] for one in compared):+.2f}",
            f"{low:.2f} to {high:.2f}",
        ]  # fmt: skip
        if low == high:
            points = ["nothing to compare", "", "", f"verified runs {low:.2f} whatever its threshold"]
        smallest = token_budgets(runs)[0]
        faster = [100 * ratio - 100 for run in runs for ratio in speed_ratios(run, "verified", "threshold", smallest)]
        speed = (
            f"{statistics.mean(faster):+.1f} ({min(faster):+.1f} to {max(faster):+.1f}) % at {int(smallest):,}"
            if faster
            else "-"
        )
        lines.append(f"| {name} | {' | '.join(points)} | {speed} | {' % | '.join(shares)} % |")
    return "\n".join(lines)


def speed_ratios(run: dict[str, Any], family: str, other: str, budget: str) -> list[float]:
    """Of the two families' speeds at a token budget, promise by promise."""
    speeds = {
        (row["promise"], row["family"]): row["speed"][budget]["speed_up"] for row in run["policies"] if budget in row["speed"]
    }
    promised = [promise for promise, name in speeds if name == family and (promise, other) in speeds]
    return [speeds[promise, family] / speeds[promise, other] for promise in promised]


def families(runs: list[dict[str, Any]]) -> dict[tuple[float, str], list[dict[str, Any]]]:
    """(promise, family) -> its row in each seed."""
    found = defaultdict(list)
    for run in runs:
        for row in run["policies"]:
            found[row["promise"], row["family"]].append(row)
    return dict(sorted(found.items(), key=lambda item: -item[0][0]))


def promises_section(runs: list[dict[str, Any]]) -> str:
    """One data set: every family under every promise."""
    data, budgets, usual = runs[0]["data"], token_budgets(runs), usual_budget(runs)
    columns = [f"{int(budget):,} tokens a batch" for budget in budgets]
    lines = [
        f"**{data['name']}** ({setting(runs)}; seeds {', '.join(str(run['seed']) for run in runs)})",
        "",
        f"{PROMISE_HEAD} chosen | {' | '.join(columns)} | share of L / mean layers | of a token |",
        "|---|---|---|---|---|---|---|" + "---|" * len(budgets) + "---|---|",
    ]
    for (promise, family), rows in families(runs).items():
        kept = sum(row["agreement"] >= promise for row in rows)
        agreement = spread(row["agreement"] for row in rows) + ("" if kept == len(rows) else f", kept in {kept}")
        speeds = " | ".join(speed_up(rows, budget) for budget in budgets)
        shares = (statistics.mean(measured(rows, usual, figure)) for figure in ("share_of_bound", "share_of_token_bound"))
        cells = [
            f"{promise:g}", family, str(len(rows)), agreement, spread(row["accuracy"] for row in rows),
            spread((row["mean_layers"] for row in rows), 2), str(sum(row["chosen"] for row in rows)), speeds,
            *(f"{share:.0%}" for share in shares),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    full = [run["policies"][0] for run in runs]
    rates = ", ".join(
        f"{statistics.median(measured(full, budget, 'samples_per_second')):.0f} at {int(budget):,}" for budget in budgets
    )
    lines += ["", f"Full depth, texts a second at a token budget: {rates}."]
    return "\n".join([*lines, *shift_lines(runs)])


def shift_lines(runs: list[dict[str, Any]]) -> list[str]:
    """Where other kinds of text were served: agreement there, and what the audit said."""
    others = runs[0]["data"]["shifted"]
    if not others:
        return []
    kinds = [runs[0]["data"]["name"], *others]
    lines = [
        "",
        "The same policies on other kinds of text (first seed): agreement, and the mean layers they take there.",
        "",
        "| promised agreement | policy | " + " | ".join(kinds) + " |",
        "|---|---|" + "---|" * len(kinds),
    ]
    for row in runs[0]["policies"]:
        if row["family"].endswith("batch shrinks") or row["family"] == "full":
            continue
        cells = [row, *(row["shifted"][name] for name in others)]
        cells = " | ".join(f"{cell['agreement']:.3f} at {cell['mean_layers']:.2f}" for cell in cells)
        lines.append(f"| {row['promise']:g} | {row['family']} | {cells} |")
    lines += ["", AUDIT, ""]
    for promise, audits in runs[0]["audit"].items():
        told = (
            f"{name} {report['agreement']:.3f} ({report['interval'][0]:.3f}-{report['interval'][1]:.3f}), "
            f"{'not shown broken' if report['holds'] else 'broken'}"
            for name, report in audits.items()
        )
        lines.append(f"- promised {promise}: {'; '.join(told)}")
    return lines


def bigrams_section(results: list[dict[str, Any]], fewest: int = 2000) -> str:
    """What pairs of neighbours change in the ranks' correlation, a line for each predictor."""
    lines = [
        f"What n-grams up to 2, the default, change in the rank correlation of 1, over tables of {fewest:,} texts and more:",
        "",
        f"| predictor | change on average | better in | {' | '.join(result['data']['name'] for result in results)} |",
        "|---|---|---|" + "---|" * len(results),
    ]
    changes: dict[str, list[list[float]]] = defaultdict(list)
    for result in results:
        found = {(row["predictor"], row["texts"], row["ngram"]): row for row in result["predictors"] if "texts" in row}
        for name in dict.fromkeys(name for name, *_ in found):
            pairs = [
                (found[name, texts, 1], row)
                for (of, texts, n), row in found.items()
                if of == name and n == 2 and texts >= fewest
            ]
            changes[name].append([two["rank_correlation"] - one["rank_correlation"] for one, two in pairs])
    for name, of_sets in changes.items():
        every = [change for of_set in of_sets for change in of_set]
        sets = " | ".join(f"{statistics.mean(of_set):+.3f} ({min(of_set):+.3f} to {max(of_set):+.3f})" for of_set in of_sets)
        better = f"{sum(change > 0 for change in every)} of {len(every)}"
        lines.append(f"| {name} | {statistics.mean(every):+.3f} | {better} | {sets} |")
    return "\n".join(lines)


def predictors_section(result: dict[str, Any]) -> str:
    """One data set: every predictor."""
    data, settings, where = result["data"], result["settings"], result["environment"]
    whose = "flags of another model: is it right there" if settings["flags"] else f"threshold {settings['threshold']:g}"
    lines = [
        f"**{data['name']}** ({data['test']:,} test texts, {result['num_exits']} exits, {whose}, mean exit "
        f"{result['mean_exit']:.2f}; torch {where['torch']}, {where['date']})",
        "",
        "| predictor | texts | n-grams | rank correlation | exact match | agreement | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["predictors"]:
        values = [f"{row[key]:.3f}" if key in row else "-" for key in PREDICTOR_FIGURES]
        texts = f"{row['texts']:,} | 1-{row['ngram']}" if "texts" in row else "- | -"
        lines.append(f"| {row['predictor']} | {texts} | {' | '.join(values)} |")
    return "\n".join(lines).replace("| 1-1 |", "| 1 |")


def depth_section(result: dict[str, Any]) -> str:
    where, shape = result["environment"], result["shape"]
    kind = "random weights" if shape["random"] else "trained"
    inputs = "texts" if result["settings"].get("inputs", "texts") == "texts" else "texts tokenized before"
    lines = [
        f"**Depth in turns with full depth: {result['settings']['texts']}** ({shape['layers']} layers of width "
        f"{shape['hidden_size']}, {kind}, {result['settings']['samples']} {inputs}, {result['settings']['rounds']} turns; "
        f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date']})",
        "",
        "| policy | mean layers | of a token | samples/s | of full depth | speed-up | share of L / mean layers | of a token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["policies"]:
        of_a_token = row.get("mean_layers_of_a_token", row["mean_layers"])  # one depth for all: the same
        share = row.get("share_of_token_bound", row["share_of_bound"])
        lines.append(
            f"| {row['policy']} | {row['mean_layers']:.2f} | {of_a_token:.2f} | {row['samples_per_second']:.1f} | "
            f"{row['full_samples_per_second']:.1f} | {row['speed_up']:.2f}x | {row['share_of_bound']:.1%} | {share:.1%} |"
        )
    return "\n".join(lines)


def policies_section(result: dict[str, Any]) -> str:
    data, where = result["data"], result["environment"]
    arguments = result["training"]["arguments"]
    exits = result["exit_accuracies"]
    kept = ", checkpoint best on dev" if arguments.get("keep_best") else ""
    minutes = "" if result["training"]["resumed_from"] else f" in {result['training']['seconds'] / 60:.0f} min"
    lines = [
        f"**{data['name']}** ({data['samples']:,} test samples; trained {arguments['epochs']:g} epochs by recipe "
        f"`{arguments['recipe']}`{minutes}{kept}; {where['cpu']}, {where['threads']} threads, torch {where['torch']}, "
        f"{where['date']})",
        "",
        "| exit after layer | " + " | ".join(map(str, result["exit_layers"])) + " |",
        "|---|" + "---|" * len(result["exit_layers"]),
    ]
    lines += [
        f"| accuracy, {split} | " + " | ".join(f"{value:.3f}" for value in values) + " |" for split, values in exits.items()
    ]
    lines += [
        "",
        "| policy | accuracy | same answer as all layers | mean layers | samples/s | speed-up | share of L / mean layers |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [policy_row(row) for row in result["policies"]]
    lines += [
        "",
        "| table threshold | decision | exact | over | under | rank corr. | mean layers | accuracy | constant depth | "
        "random | threshold exits | oracle |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [predictor_row(row) for row in result["predictors"]]
    return "\n".join(lines)


def policy_row(row: dict[str, Any]) -> str:
    accuracy, agreement = (f"{row[key]:.3f}" if key in row else "-" for key in ("accuracy", "agreement"))
    return (
        f"| {row['policy']} | {accuracy} | {agreement} | {row['mean_layers']:.2f} | {row['samples_per_second']:.0f} | "
        f"{row['speed_up']:.2f}x | {row['share_of_bound']:.0%} |"
    )


def predictor_row(row: dict[str, Any]) -> str:
    return (
        f"| {row['threshold']:g} | {row['decision']} | {row['exact_match']:.2f} | {row['over_prediction']:.2f} | "
        f"{row['under_prediction']:.2f} | {row['rank_correlation']:.2f} | {row['mean_layers']:.2f} | {row['accuracy']:.3f} | "
        f"{row['constant_accuracy']:.3f} | {row['random_accuracy']:.3f} | {row['threshold_accuracy']:.3f} at "
        f"{row['threshold_mean_layers']:.2f} | {row['oracle_accuracy']:.3f} at {row['oracle_mean_layers']:.2f} |"
    )
