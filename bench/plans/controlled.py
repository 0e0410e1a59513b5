"""How often rules of risk control keep a promise, and what they let a policy save: ours beside RC-EENN's and MAPIE's.

    pip install --no-deps mapie==1.6.0
    python -m bench.plans.controlled --work WORK --e5 E5

Reads the records that `bench.plans.record` left in WORK. All rules choose among the same thresholds of entropy at every exit,
on the same 200 draws of calibration texts, with replacement; all recorded texts are the truth. No layer runs.

    binomial     the exact binomial test, threshold by threshold from the cautious end (ours, for agreement)
    betting      a bound by betting, likewise (RC-EENN's upper confidence bound: Waudby-Smith and Ramdas)
    mapie        Hoeffding and Bentkus' p-values of all thresholds, corrected by Bonferroni and Holm (MAPIE's code and default)
    on average   conformal risk control (RC-EENN's and CALM's), which promises nothing about a single calibration
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from bench.answers.tasks import Trained
from bench.answers.training import folder_of
from bench.cells import Cell, run_missing
from bench.environment import RESULTS
from bench.plans.command import parser_of
from bench.plans.families import quantiles
from bench.plans.outcomes import by_threshold
from bench.plans.promised import CONFIDENCE, DIGITS, PROMISES, SPLITS, boldest
from bench.plans.record import FILE, JUDGE, TABLE, load_parts, recorded_cells
from bench.plans.signals import Texts
from bench.rows import Found, found
from bench.training import declared
from geep_triton.promises.guarantees import betting_p_value, boldest_on_average, boldest_safe

OUTPUT = RESULTS / "plans" / "controlled"
ALL_LAYERS = -1  # no setting is safe


class Drawn(NamedTuple):
    """What one calibration sees.

    Attributes:
        wrong: [S, N] bool, whether the answers of S settings, from cautious to bold, differ from the full model's.
        risk: that is allowed.
    """

    wrong: torch.Tensor
    risk: float


def by_binomial(drawn: Drawn) -> int:
    """Ours: `geep_triton.promises` for agreement."""
    return int(boldest(drawn.wrong.sum(1, keepdim=True), drawn.wrong.shape[1], drawn.risk, CONFIDENCE)[0])


def by_betting(drawn: Drawn) -> int:
    """RC-EENN's upper confidence bound: a setting is safe where betting shows its risk to be low enough."""
    p_values = (betting_p_value(wrong, drawn.risk, CONFIDENCE) for wrong in drawn.wrong)
    return _index(boldest_safe(_until(p_values), CONFIDENCE))


def _until(p_values: Iterator[float]) -> list[float]:
    """The values up to the first that is too high: those after it are not looked at."""
    seen = []
    for p_value in p_values:
        seen.append(p_value)
        if p_value > 1 - CONFIDENCE:
            break
    return seen


def by_mapie(drawn: Drawn) -> int:
    """MAPIE's Learn-then-Test: of all safe settings the boldest."""
    from mapie.risk_control.fwer_control import control_fwer
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    risks, samples = drawn.wrong.double().mean(1).numpy(), drawn.wrong.shape[1]
    p_values = compute_hoeffding_bentkus_p_value(risks, samples, drawn.risk, binary=True)[:, 0]
    safe = control_fwer(p_values, 1 - CONFIDENCE)
    return int(np.max(safe)) if len(safe) else ALL_LAYERS


def on_average(drawn: Drawn) -> int:
    """Conformal risk control."""
    return _index(boldest_on_average(drawn.wrong, drawn.risk))


def _index(chosen: int | None) -> int:
    return ALL_LAYERS if chosen is None else chosen


RULES: dict[str, Callable[[Drawn], int]] = {
    "binomial": by_binomial,
    "betting": by_betting,
    "mapie": by_mapie,
    "on average": on_average,
}


def measured(table: Texts, judge: Texts, splits: int = SPLITS) -> list[Found]:
    """What each rule reaches under each promise.

    Args:
        table: texts whose entropies give the settings.
        judge: N texts that calibrate and are the truth. Half as many are drawn for a calibration.
        splits: how many calibrations.
    """
    outcome = by_threshold(judge.entropy, range(judge.early), quantiles(table.entropy))
    wrong, means = outcome.wrong(judge.agrees), outcome.means(judge.agrees)
    agreement = torch.cat([means.agreement, torch.ones(1, dtype=torch.float64)])  # at the end that of all layers
    layers = torch.cat([means.layers, torch.full((1,), float(judge.num_layers), dtype=torch.float64)])
    rows = []
    for promise in PROMISES:
        chosen: dict[str, list[int]] = {name: [] for name in RULES}
        for seed in range(splits):
            draws = torch.randint(judge.samples, (judge.samples // 2,), generator=torch.Generator().manual_seed(seed))
            drawn = Drawn(wrong[:, draws], 1 - promise)
            for name, rule in RULES.items():
                chosen[name].append(rule(drawn))
        for name, indices in chosen.items():
            reached = torch.tensor(indices)
            values = {
                "kept": int((agreement[reached] >= promise - 1e-6).sum()),
                "of": splits,
                "agreement": round(float(agreement[reached].mean()), DIGITS),
                "layers": round(float(layers[reached].mean()), DIGITS),
                "none_safe": round(float((reached == ALL_LAYERS).double().mean()), DIGITS),
            }
            rows.append(found(name, values, promise=promise))
    return [found("", {"num_layers": judge.num_layers, "samples": judge.samples}), *rows]


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    parser.add_argument("--splits", type=int, default=SPLITS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    limit = arguments.limit_samples
    of_run = {
        "splits": arguments.splits,
        "promises": PROMISES,
        "confidence": CONFIDENCE,
        "mapie": importlib.metadata.version("mapie"),
    }

    def run(cell: Trained) -> list[Found]:
        parts = load_parts(folder_of(cell, arguments.work, limit) / FILE)
        return measured(Texts(parts[TABLE]), Texts(parts[JUDGE]), arguments.splits)

    wanted = [
        Cell(cell.name, declared(cell, limit) | of_run, lambda _, cell=cell: run(cell)) for cell in recorded_cells(arguments)
    ]
    run_missing("plans", wanted, arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()
