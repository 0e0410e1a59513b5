"""Why a text went as deep as it did: its tokens in the exit table, its answers at each exit, what the policy made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.answers import Answers, OneClass, Score
from geep_triton.checks import check_kind
from geep_triton.engine.checks import as_list
from geep_triton.engine.engine import Engine
from geep_triton.engine.predictions import EveryExit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.leave import ExitRule
from geep_triton.policies.plan import PlannedAfter
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import AtLayer, LastLayer, TableAgreement, TableExit
from geep_triton.policies.text import describe
from geep_triton.promises.simulate import first_stops, follow
from geep_triton.table.exit_table import ExitTable
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import Inputs

BASES = {
    "counts": "the layer at which texts with such tokens left, by the exit table's counts",
    "exits": "the layer at which such texts leave, as the exit table has learned it",
    "agreement": "the layers until an exit gives the last exit's answer, as the exit table has learned it",
}


@dataclass(frozen=True)
class TableView:
    """What the exit table makes of a text's tokens.

    Attributes:
        predicts: the depth that it predicts, in layers: a mean over its probabilities.
        means: what this depth is, in words.
        added: for each token, how many layers deeper the prediction is with it than without it; below 0: it makes the text
            look easier. 0 for special tokens, which the table does not count.
        used: whether the policy starts by the table. Otherwise it does not read what the table predicts.
    """

    predicts: float
    means: str
    added: tuple[float, ...]
    used: bool


@dataclass(frozen=True)
class AtExit:
    """One exit and one text.

    Attributes:
        layer: of the exit.
        answer: the name of the class, the names of the labels, or the score.
        confidence: the probability of this answer. Of a label set it is that of the least clear label. None: a score that is no
            probability has none.
        same: whether it is the last exit's answer. None: nothing says when two scores are the same.
        criterion: what the policy compares here with the threshold, such as the normalized entropy: low where the answer is
            sure. None: the text is not looked at here.
        threshold: the text leaves where the criterion is at most this. None: as above, or the policy counts exits that agree.
        leaves: whether the text is answered here.
    """

    layer: int
    answer: str | tuple[str, ...] | float
    confidence: float | None
    same: bool | None
    criterion: float | None
    threshold: float | None
    leaves: bool


@dataclass(frozen=True)
class Explanation:
    """Why one text went as deep as it did.

    Attributes:
        tokens: its tokens as the tokenizer writes them, special tokens included.
        table: what the exit table makes of them. None: `no_table` says why.
        no_table: why there is no `table`. Empty where there is one.
        exits: all exits of the model, ascending.
        exit_layer: the layer after which the text is answered.
        layers_run: how many layers it runs.
        why: in plain sentences.
    """

    tokens: tuple[str, ...]
    table: TableView | None
    no_table: str
    exits: tuple[AtExit, ...]
    exit_layer: int
    layers_run: int
    why: str


def explain(engine: Engine, inputs: Inputs) -> list[Explanation]:
    """Explain for each text where it leaves under the engine's policy, and what its tokens have to do with it.

    All exits run on all inputs, and the policy is followed on their answers. What a token adds is exact: the exit table
    predicts the text once with all its keys, and once without those that the token is part of (the token itself, and the
    n-grams that contain it). The difference, in layers, is what it adds. An n-gram so counts for each of its tokens, and the
    parts do not sum to the prediction. The depth that a table predicts is a mean over its probabilities: of exits, by its
    counts or its learned exits, whichever the policy reads; else, by learned agreement, the layers that are run before an exit
    agrees with the last one. This is *our reconstruction*: the paper of the table (GEEP) explains no predictions. It tells what
    the table makes of tokens, not what the model's layers do, and a policy that does not start by the table does not read it.

    Args:
        engine: its policy is explained.
        inputs: a list of what `predict` takes, or a `datasets.Dataset`.

    Returns:
        One explanation for each input, in order.

    Raises:
        ValueError: there are no inputs; the policy answers by the answer head "shared", whose answers are not recorded; and
            whatever `predict` raises.
        TypeError: `engine` is no engine, or inputs have another type.
    """
    check_kind("engine", engine, Engine)
    check_explainable(engine.policy)
    return explain_record(engine, engine.every_exit(as_list(inputs)))


def check_explainable(policy: Policy) -> None:
    """Raise ValueError where `Engine.every_exit` does not record the answers that a policy gives."""
    if policy.answer_head == "shared":
        raise ValueError(f"policy {describe(policy)}: answers of the answer head 'shared' are not recorded and not explained")


def explain_record(engine: Engine, record: EveryExit) -> list[Explanation]:
    """As `explain`, of texts that every exit has answered already."""
    model, policy = engine.model, engine.policy
    looks = _Looks(model, policy, record)
    basis, no_table = _basis(policy, model.exit_table)
    used = isinstance(policy.start, (TableExit, TableAgreement))
    layers_run = record.layers_run(model.config.exit_layers, looks.exits).tolist()
    explanations = []
    for row in range(len(record.tokens)):
        start, end = record.tokens.offsets[row : row + 2].tolist()
        ids = record.tokens.ids[start:end]
        table = None
        if model.exit_table is not None and basis is not None:
            table = _table_view(model.exit_table, basis, ids, model.device, used)
        exits = looks.of(row)
        explanations.append(
            Explanation(
                tokens=tuple(map(str, engine.tokenizer.convert_ids_to_tokens(ids.tolist()))),
                table=table,
                no_table=no_table,
                exits=exits,
                exit_layer=model.config.exit_layers[int(looks.exits[row])],
                layers_run=layers_run[row],
                why=_why(policy, model, looks.rule, exits, int(looks.first[row])) + looks.forecast(row),
            )
        )
    return explanations


def _basis(policy: Policy, table: ExitTable | None) -> tuple[str | None, str]:
    """Which of the table's predictions is explained, and, where there is none, why."""
    if table is None:
        return None, "The model has no exit table, which would tell tokens of deep texts from those of shallow ones."
    if not table.special_ids:
        return None, "The exit table counts all tokens, special ones too, so none can be left out of it."
    start = policy.start
    if isinstance(start, TableAgreement):
        return "agreement", ""
    if isinstance(start, TableExit) and start.values == "learned":
        return "exits", ""
    if isinstance(start, TableExit) and start.statistic is not None:
        return "counts", ""
    return table.decides_by, ""


def _table_view(table: ExitTable, basis: str, ids: torch.Tensor, device: torch.device, used: bool) -> TableView:
    """Leave each of a text's tokens out once. A special token in its place ends all n-grams that it was part of."""
    variants = ids.repeat(len(ids) + 1, 1)
    variants[:-1].fill_diagonal_(table.special_ids[0])
    tokens = Tokens(variants.flatten(), torch.arange(len(ids) + 2) * len(ids))
    depths = _predicted_depth(table, basis, tokens, device)
    with_all = float(depths[-1])
    return TableView(with_all, BASES[basis], tuple((with_all - depths[:-1]).tolist()), used)


def _predicted_depth(table: ExitTable, basis: str, tokens: Tokens, device: torch.device) -> torch.Tensor:
    """[N] float64, the depth that the table predicts, in layers."""
    layers = torch.tensor(table.exit_layers, dtype=torch.float64)
    if basis == "agreement":
        steps = layers.diff(prepend=torch.zeros(1, dtype=torch.float64))
        disagrees = 1 - table.predict_agreement(tokens, device).double()
        return steps[0] + disagrees[:, :-1] @ steps[1:]
    values = "learned" if basis == "exits" else "counts"
    return table.predict(tokens, device=device, values=values).probabilities.cpu().double() @ layers


class _Looks:
    """What a policy sees of recorded texts at each exit.

    Attributes:
        first: [N] int64, the layer at which each text is first looked at.
        exits: [N] int64, the index of the exit at which each text is answered.
        rule: who leaves there. None: everybody, unscored.
    """

    def __init__(self, model: MultiExitBert, policy: Policy, record: EveryExit) -> None:
        self.layers, self.answers, self.record = tuple(model.config.exit_layers), model.answers, record
        self.rule, self.plan = policy.rule(model), policy.plan(model)
        self.first = first_stops(model, policy, record.tokens, record.logits, record.skipped)
        shape = len(record.tokens), len(self.layers)
        self.criterion = torch.full(shape, torch.nan)
        stops = self.first.clone()
        if self.rule is not None:
            for index, rows, scores in follow(self.rule, stops, self.layers, record.logits, record.skipped):
                self.criterion[rows, index] = scores.uncertainty.float()
        self.exits = torch.searchsorted(torch.tensor(self.layers), stops)
        full = record.logits[:, -1:]
        comparable = not isinstance(self.answers, Score) or self.answers.comparable
        self.same = self.answers.agree(record.logits, full) if comparable else None

    def forecast(self, row: int) -> str:
        """What the plan goes by, as a sentence; empty where there is no plan."""
        if self.plan is None:
            return ""
        exit_ = self.plan.exit_
        agreement = self.plan.forecasts.agreement(exit_, self.record.logits[row : row + 1, exit_])[0].tolist()
        said = ", ".join(
            f"{value:.2f} after layer {layer}" for value, layer in zip(agreement, self.layers[exit_:], strict=True)
        )
        return f" Forecast agreement with full depth: {said}; a layer costs {self.plan.price:.3g} of it."

    def of(self, row: int) -> tuple[AtExit, ...]:
        """All exits of one text."""
        logits = self.record.logits[row]
        confidences = confidence(self.answers, logits)
        by_threshold = self.rule is not None and self.rule.rule == "confidence"
        exits = []
        for index, layer in enumerate(self.layers):
            seen = not bool(self.criterion[row, index].isnan())
            exits.append(
                AtExit(
                    layer=layer,
                    answer=answer_of(self.answers, logits[index]),
                    confidence=None if confidences is None else float(confidences[index]),
                    same=None if self.same is None else bool(self.same[row, index]),
                    criterion=float(self.criterion[row, index]) if seen else None,
                    threshold=self.rule.thresholds[layer] if seen and by_threshold and self.rule is not None else None,
                    leaves=index == int(self.exits[row]),
                )
            )
        return tuple(exits)


def confidence(answers: Answers, logits: torch.Tensor) -> torch.Tensor | None:
    """The probability of an answer: [..., C] -> [...]. Of a label set it is the least clear label's. None: there is none."""
    if isinstance(answers, OneClass):
        return answers.probabilities(logits).amax(-1)
    if isinstance(answers, Score) and not answers.logistic:
        return None
    probabilities = answers.probabilities(logits)
    return torch.where(answers.given(logits), probabilities, 1 - probabilities).amin(-1)


def answer_of(answers: Answers, logits: torch.Tensor) -> str | tuple[str, ...] | float:
    """One text's answer, of its logits [C]: the name of a class, the names of labels, or a score."""
    if isinstance(answers, Score):
        return float(answers.scores(logits))
    names = tuple(answers.id2label[index] for index in answers.given(logits).nonzero()[:, 0].tolist())
    return names[0] if isinstance(answers, OneClass) else names


def _why(policy: Policy, model: MultiExitBert, rule: ExitRule | None, exits: tuple[AtExit, ...], first: int) -> str:
    """Why a text is answered where it is, in plain sentences."""
    answered = next(each for each in exits if each.leaves)
    unscored = isinstance(policy.start, PlannedAfter) and first in (policy.start.layer, exits[-1].layer)
    begins = _begins(policy, first, rule is not None and not unscored)
    if unscored:
        return begins
    if rule is None:
        return begins if isinstance(policy.start, PlannedAfter) else f"{begins} Nobody is scored."
    scores = [each for each in exits if each.criterion is not None]
    name = rule.criterion.replace("_", " ")
    if answered.criterion is None:
        if not scores:
            return f"{begins} It is scored at no earlier exit."
        tried = "; ".join(_compared(rule, each, "above") for each in scores)
        if rule.rule != "confidence":
            return f"{begins} Its answers did not stay the same over {rule.patience} exits in a row, so it runs to the end."
        streak = "" if rule.patience == 1 else f" over {rule.patience} exits in a row"
        return f"{begins} Its {name} was not low enough{streak}, so it runs to the end: {tried}."
    if rule.rule != "confidence":
        return f"{begins} After layer {answered.layer} the answer had been the same for {rule.patience} exits in a row."
    streak = "" if rule.patience == 1 else f", the {rule.patience}th sure exit in a row"
    return f"{begins} It leaves where its {name} is low enough: {_compared(rule, answered, 'at most')}{streak}."


def _compared(rule: ExitRule, exit_: AtExit, how: str) -> str:
    """What was compared at one exit. A distance is stored below 0, and larger is surer."""
    value, threshold = exit_.criterion or 0.0, exit_.threshold or 0.0
    if value <= threshold and how == "above":  # sure, but not for long enough
        how = "at most"
    if rule.criterion == "distance":
        value, threshold, how = -value, -threshold, {"above": "below", "at most": "at least"}[how]
    return f"after layer {exit_.layer} {value:.3g}, {how} {threshold:.3g}"


def _begins(policy: Policy, first: int, scored: bool) -> str:
    """Where a text is first looked at, and why there."""
    start = policy.start
    verb = "scored" if scored else "answered"
    if isinstance(start, LastLayer):
        return "The policy runs all layers for every text."
    if isinstance(start, PlannedAfter):
        return f"It is planned after layer {start.layer}, by a forecast, to be {verb} after layer {first}."
    if isinstance(start, (TableExit, TableAgreement)):
        return f"The exit table predicts from its tokens that it is first to be {verb} after layer {first}."
    if isinstance(start, AtLayer) or not scored:
        return f"The policy has every text {verb} after layer {first}."
    return f"Every text is first scored after layer {first}."
