"""What a report shows, without its looks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from geep_triton.answers import Score, kind_of
from geep_triton.calibrated import Breakdown, Calibrated, ranking_sentences
from geep_triton.checks import check_int, check_kind
from geep_triton.engine.checks import as_list
from geep_triton.engine.engine import Engine
from geep_triton.explanations import Explanation, check_explainable, explain_record
from geep_triton.policies.text import describe
from geep_triton.promises.breakdown import breakdown
from geep_triton.promises.simulate import simulate
from geep_triton.report.findings import where_exits_do_not_pay
from geep_triton.tokens.samples import Inputs
from geep_triton.version import __version__

SHOWN = 12  # texts that are explained by default
DEEPEST = 2 / 3  # of those are the deepest; the others are the shallowest


@dataclass(frozen=True)
class Shown:
    """One text of the user's that the page explains.

    Attributes:
        number: its place among the given texts, from 1.
        explanation: why it went as deep as it did.
    """

    number: int
    explanation: Explanation


@dataclass(frozen=True)
class GivenTexts:
    """How texts that were given for the report go through the model.

    Attributes:
        policy: short form of the policy under which they did.
        breakdown: counts of them all. None: the score has no decision or tolerance, by which answers are compared.
        shown: some of them, explained: the deepest, then the shallowest. Their tokens are on the page.
    """

    policy: str
    breakdown: Breakdown | None
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class ReportData:
    """What a report shows.

    Attributes:
        version: of this package.
        model: name of the model.
        kind: of its answers, "classes", "score" or "label sets".
        labels: names of its classes or labels.
        num_layers: how many layers it has.
        exit_layers: after which of them it can answer.
        exit_table: whether it has an exit table.
        policy: short form of the policy that it is saved with; "full" where it has none.
        calibrated: what its calibration found. None: it was never calibrated.
        does_not_pay: where exits do not pay, by its calibration, in sentences.
        ranking: what is promised of its rankings, in sentences.
        given: how the given texts went. None: none were given.
    """

    version: str
    model: str
    kind: str
    labels: tuple[str, ...]
    num_layers: int
    exit_layers: tuple[int, ...]
    exit_table: bool
    policy: str
    calibrated: Calibrated | None
    does_not_pay: tuple[str, ...]
    ranking: tuple[str, ...]
    given: GivenTexts | None

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def report_data(engine: Engine, texts: Inputs | None = None, show: int = SHOWN) -> ReportData:
    """Collect what a report shows. See `geep_triton.report.page.write_report`."""
    check_kind("engine", engine, Engine)
    check_int("show", show, 0)
    model = engine.model
    config, saved = model.config, model.exit_config.calibration
    calibrated = None if saved is None else Calibrated.of(saved)
    return ReportData(
        version=__version__,
        model=_name(str(config.name_or_path)),
        kind=kind_of(config),
        labels=tuple(config.id2label[index] for index in range(config.num_labels)),
        num_layers=config.num_hidden_layers,
        exit_layers=tuple(config.exit_layers),
        exit_table=model.exit_table is not None,
        policy=model.exit_config.policy or "full",
        calibrated=calibrated,
        does_not_pay=() if calibrated is None else tuple(where_exits_do_not_pay(calibrated, config.num_hidden_layers)),
        ranking=()
        if model.exit_config.ranking_calibration is None
        else tuple(ranking_sentences(model.exit_config.ranking_calibration)),
        given=None if texts is None else _given(engine, texts, show),
    )


def _given(engine: Engine, texts: Inputs, show: int) -> GivenTexts:
    """Run every exit on the texts, and explain some of them."""
    check_explainable(engine.policy)
    model, record = engine.model, engine.every_exit(as_list(texts))
    answers = model.answers
    comparable = not isinstance(answers, Score) or answers.comparable
    exits = simulate(model, engine.policy, record.tokens, record.logits, record.skipped)
    rows = _deepest_and_shallowest(record.layers_run(model.config.exit_layers, exits), show)
    explained = explain_record(engine, record.select(torch.tensor(rows, dtype=torch.int64))) if rows else []
    return GivenTexts(
        policy=describe(engine.policy),
        breakdown=breakdown(model, engine.policy, record) if comparable else None,
        shown=tuple(Shown(row + 1, explanation) for row, explanation in zip(rows, explained, strict=True)),
    )


def _deepest_and_shallowest(layers_run: torch.Tensor, show: int) -> list[int]:
    """Rows of the texts to show, given how many layers each runs [N]: the deepest first, then the shallowest."""
    order = layers_run.argsort(descending=True, stable=True).tolist()
    deepest = round(DEEPEST * show)
    return order if show >= len(order) else order[:deepest] + order[len(order) - (show - deepest) :]


def _name(name_or_path: str) -> str:
    """A model's name: a hub id as it is, of a folder the last part, since the others tell of the machine."""
    if not name_or_path:
        return "BERT with exits"  # it was never saved
    return Path(name_or_path).resolve().name if Path(name_or_path).exists() else name_or_path
