"""Audits while serving: a random share of the samples also runs to the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from geep_triton.answers import Score
from geep_triton.checks import check_choice, check_int, check_kind, check_number
from geep_triton.engine.engine import Engine
from geep_triton.engine.promise import Promise, still_kept
from geep_triton.promises.guarantees import binomial_interval
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.tokens.ragged import Tokens
from geep_triton.warn import warn

MEMORY = 500  # the next bet goes by so many audited samples, since inputs may change late


def audit(
    engine: Engine,
    rate: float = 0.01,
    promised: float | None = None,
    confidence: float = 0.95,
    seed: int | None = None,
    recall_of: str | None = None,
    reference: Engine | None = None,
) -> Audit:
    """From now on, run a random share of an engine's samples to the end as well, and compare the answers.

    These samples skip by the model's gates, if it has any, also where the policy plans paths. With "+skip:never" they run every
    layer.

    Args:
        engine: it carries the audit until its policy changes.
        rate: the share of the samples, above 0, at most 1.
        promised: the agreement that answers shall have; None: what `calibrate` promised of this policy, if the exit table and
            the temperatures are still the same. Without a promise the audit only observes.
        confidence: of the audit's interval.
        seed: of the random choice; None: another one each time.
        recall_of: the name of a class or label. Then only those audited samples count to which the full model gives it, and an
            answer agrees where it has it too. None: whole answers are compared.
        reference: an engine that runs the same model in the dtype of the full model whose answers were promised. It is needed
            to watch a promise that was made over several dtypes: without it, such an audit compares with all layers in the
            engine's own dtype, and only observes. None: the engine itself.

    Returns:
        The audit. Its `report()` tells the observed agreement. `predict` warns once when the audit has shown, at this
        confidence however often one looks, that the promise no longer holds. A promise by the method "conformal" holds on
        average over calibrations: one calibration may fall a little short of it, and a long audit finds that. Another policy,
        calibration or fit of temperatures ends the audit.

    Raises:
        ValueError: scores have neither decision nor tolerance to compare them by; there is no such class; or a rate, promise
            or confidence is out of range.
        TypeError: `engine` is no engine.
    """
    check_kind("engine", engine, Engine)
    answers = engine.model.answers
    if isinstance(answers, Score):
        answers.check_comparable()
    if recall_of is not None:
        check_choice("recall_of", recall_of, engine.model.config.label2id)
        if isinstance(answers, Score) and answers.decision is None:
            raise ValueError("recall_of a score needs a decision, from which on it is positive: set model.exit_config.decision")
    if reference is not None:
        _check_reference(engine, reference)
    promise = promise_of(engine)
    if promised is None:
        promised = _promised(promise, recall_of)
        of = None if promise is None else promise.reference
        if promised is not None and of is not None and of != (reference or engine).dtype:
            warn(
                f"the promise is about the answers of all layers in {of}, and this audit compares with those in "
                f"{(reference or engine).dtype}, so it only observes: give it an engine that runs the model in {of} "
                "(reference=...)"
            )
            promised = None
    made = Audit(rate, promised, confidence, seed)
    engine.observer = _Auditor(engine, made, recall_of, reference or engine)
    return made


def _check_reference(engine: Engine, reference: Engine) -> None:
    """Raise unless the reference answers the same classes from the same tokens."""
    check_kind("reference", reference, Engine)
    ours, theirs = (
        (one.model.config.id2label, tokenizer_fingerprint(one.tokenizer), one.model.exit_config.answers_by)
        for one in (engine, reference)
    )
    if ours != theirs:
        raise ValueError(
            "reference must run the engine's own model, got one with other labels, another tokenizer or another decision"
        )


def _promised(promise: Promise | None, recall_of: str | None) -> float | None:
    """What was promised of agreement, or of the recall of a class."""
    if promise is None:
        return None
    return promise.agreement if recall_of is None else promise.class_recall.get(recall_of)


def promise_of(engine: Engine) -> Promise | None:
    """The promise about an engine's answers. It is dropped with a warning where the table or temperatures have changed."""
    engine.promise = still_kept(engine.promise, engine.model)
    return engine.promise


@dataclass(frozen=True, eq=False)
class _Auditor:
    """Observes an engine for an audit."""

    engine: Engine
    audit: Audit
    recall_of: str | None
    reference: Engine

    def see(self, tokens: Tokens, logits: torch.Tensor) -> None:
        """Run some of a window's samples to the end, and count how many of their answers [N, C] are the same."""
        engine, made = self.engine, self.engine.promise
        if made is not None and promise_of(engine) is None and self.audit.promised == _promised(made, self.recall_of):
            self.audit.promised = None
        rows = self.audit.choose(len(tokens))
        if rows.numel():
            self.audit.record(self._agrees(logits[rows], self.reference.full_depth(tokens.select(rows))))

    def _agrees(self, logits: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
        """[M] bool: whether answers are the last exit's. Of a class: of the samples that have it, whether they get it."""
        answers = self.engine.model.answers
        if self.recall_of is None:
            return answers.agree(logits, full)
        label = self.engine.model.config.label2id[self.recall_of]
        having = answers.given(full)[:, label]
        return answers.given(logits)[having, label]

    def end(self) -> None:
        """Warn that the audit ends, since the answers to come are others."""
        warn("the audit that was running ends here: call `audit` again for the new answers")


@dataclass(frozen=True)
class AuditReport:
    """What an audit has seen so far.

    Attributes:
        samples: how many were audited.
        agreement: the share of them that got the last exit's answer; None before the first.
        recent: the same share, with most weight on about the last 500.
        interval: of the agreement, at the audit's confidence for one look (Clopper and Pearson).
        promised: the promised agreement; None without a promise.
        holds: False once the audit has shown, at its confidence however often one looks, that the promise is broken; True
            before that; None without a promise.
    """

    samples: int
    agreement: float | None
    recent: float | None
    interval: tuple[float, float]
    promised: float | None
    holds: bool | None


class Audit:
    """Counts how often audited samples get the last exit's answer, and warns once when a promise no longer holds.

    Args:
        rate: the share of the samples to audit, above 0, at most 1.
        promised: the agreement that answers shall have; None: the audit only observes.
        confidence: of the interval.
        seed: of the random choice; None: another one each time.
    """

    def __init__(self, rate: float, promised: float | None = None, confidence: float = 0.95, seed: int | None = None) -> None:
        check_number("rate", rate, 0.0, 1.0)
        check_number("confidence", confidence, 0.5, 0.9999)
        if rate == 0:
            raise ValueError("rate must be above 0, got 0")
        if promised is not None:
            check_number("promised", promised, 0.0, 1.0)
            if promised == 0:
                raise ValueError("promised must be above 0, got 0")
        if seed is not None:
            check_int("seed", seed, -(2**63), 2**63 - 1)
        self.rate = rate
        self.promised = promised
        self.confidence = confidence
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._samples = 0
        self._differing = 0
        self._recent = 0.0 if promised is None else 1 - promised  # the share of the latest samples that differs
        self._log_wealth = 0.0
        self._broken = False

    def choose(self, samples: int) -> torch.Tensor:
        """[K] int64, the samples of a window that are audited."""
        return (torch.rand(samples, generator=self._generator) < self.rate).nonzero()[:, 0]

    def record(self, agrees: torch.Tensor) -> None:
        """Count audited samples [K] bool."""
        warned = self._broken
        for agreeing in agrees.tolist():
            self._bet(not agreeing)
            self._samples += 1
            self._differing += not agreeing
            # The promise itself counts as one sample, before the first.
            self._recent += ((not agreeing) - self._recent) / min(self._samples + (self.promised is not None), MEMORY)
        if self._broken and not warned:
            report = self.report()
            warn(
                f"of {report.samples} audited samples {report.agreement:.1%} got the full model's answer, lately about "
                f"{report.recent:.1%}, which shows at confidence {self.confidence:g} that fewer than the promised "
                f"{self.promised:.1%} do: the inputs are not like those of the calibration, or it promised too much; "
                "calibrate again"
            )

    def _bet(self, differs: bool) -> None:
        """Bet, on one sample, that more samples differ than promised.

        While the promise holds, wealth never grows on average. So it ever reaches 1 / (1 - confidence) with probability
        1 - confidence at most (Ville's inequality). The stake follows the latest samples, not all of them: otherwise a late
        change would long be taken for luck.
        """
        if self.promised is None:
            return
        allowed = max(1 - self.promised, 1e-6)
        stake = min(max(0.0, (self._recent - allowed) / (allowed * (1 - allowed))), 0.5 / allowed)
        self._log_wealth += math.log1p(stake * (differs - allowed))
        self._broken |= self._log_wealth >= -math.log(1 - self.confidence)

    def report(self) -> AuditReport:
        """What the audit has seen so far."""
        if not self._samples:
            return AuditReport(0, None, None, (0.0, 1.0), self.promised, holds=None if self.promised is None else True)
        low, high = binomial_interval(self._differing, self._samples, self.confidence)
        agreement = 1 - self._differing / self._samples
        holds = None if self.promised is None else not self._broken
        return AuditReport(self._samples, agreement, 1 - self._recent, (1 - high, 1 - low), self.promised, holds)
