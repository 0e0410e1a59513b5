"""The geometry of a report's pictures, in the units of an SVG's viewBox. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geep_triton.calibrated import AtExit, Calibrated, Candidate, percent
from geep_triton.explanations import AtExit as TextAtExit
from geep_triton.explanations import Explanation

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44  # margins, in which axes are labelled
LABEL_PLACES = ((0, -15), (15, 0), (-15, 0), (0, 15), (12, -12), (-12, -12), (12, 12), (-12, 12))
LABEL_SIZE = 13  # two labels closer than this touch
DOT = 5
LEAST_NAMED = 0.005  # layers that a token adds and that two digits show


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: where, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A candidate in the picture of agreement against speed.

    Attributes:
        number: by which the table names it.
        x, y: where it is.
        label_x, label_y: where its number stands.
        title: what it is, in words.
        chosen: whether it is the policy that is used.
        full: whether it is full depth.
    """

    number: int
    x: float
    y: float
    label_x: float
    label_y: float
    title: str
    chosen: bool
    full: bool


@dataclass(frozen=True)
class Scatter:
    """Agreement against speed of all candidates that were measured.

    Attributes:
        dots: the candidates.
        curve: points "x,y" of the chosen family's measured settings.
        cut: whether the curve goes on below the picture.
        promised: y of the promise. None: no agreement was promised, or it lies outside.
        full_speed: x of full depth's speed.
        x_ticks, y_ticks: of the axes.
        title: what the picture shows, in words.
    """

    dots: tuple[Dot, ...]
    curve: tuple[str, ...]
    cut: bool
    promised: float | None
    full_speed: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    title: str


@dataclass(frozen=True)
class Bar:
    """A bar of texts that leave at one exit, in two parts.

    Attributes:
        x, width: where it stands.
        same_y, same_height: those who get the last exit's answer.
        other_y, other_height: the others, on top of them.
        layer: of the exit.
        share: of all texts, in words.
        title: what it shows, in words.
    """

    x: float
    width: float
    same_y: float
    same_height: float
    other_y: float
    other_height: float
    layer: int
    share: str
    title: str


@dataclass(frozen=True)
class Step:
    """One exit in the picture of a text's way.

    Attributes:
        x, width: where its bar stands.
        y, height: its height is the confidence, or the score's place between the lowest and the highest.
        layer: of the exit.
        state: "left" where the text left, "scored" where it was looked at and stayed, else "passed".
        same: whether the answer there is the last exit's. None: not known.
        text: the confidence or the score.
    """

    x: float
    width: float
    y: float
    height: float
    layer: int
    state: str
    same: bool | None
    text: str


STEPS_HEIGHT, STEPS_BASE = 112, 84  # of the picture of a text's way, and the foot of its bars


def in_order(calibrated: Calibrated) -> list[Candidate]:
    """The candidates, the chosen one among them, from slow to fast. Full depth is the first."""
    candidates = calibrated.with_chosen()
    return sorted(candidates, key=lambda candidate: (candidate.family != "full", candidate.speed_up or 0.0))


def scatter(calibrated: Calibrated) -> Scatter | None:
    """Agreement against speed. None where nothing was measured."""
    numbered = [(number, each) for number, each in enumerate(in_order(calibrated), start=1) if each.speed_up is not None]
    if not numbered:
        return None
    measured = [each for _, each in numbered]
    speeds = [each.speed_up or 0.0 for each in measured]
    low = min([each.agreement for each in measured] + ([] if calibrated.agreement is None else [calibrated.agreement]))
    low = max(0.0, low - max(0.1 * (1 - low), 0.001))
    right = max(speeds) * 1.06
    x_axis = [value for value in ticks(0, right, 6) if value <= right]
    y_axis = [value for value in ticks(low, 1.0, 6) if value >= low]
    high = 1.0 + 0.06 * (1 - low)

    def x(speed: float) -> float:
        return LEFT + speed / right * (WIDTH - LEFT - RIGHT)

    def y(agreement: float) -> float:
        return TOP + (high - agreement) / (high - low) * (HEIGHT - TOP - BOTTOM)

    points = [(x(each.speed_up or 0.0), y(each.agreement)) for each in measured]
    places = _label_places(points)
    curve = sorted(
        (each for each in calibrated.curve if each.speed_up is not None), key=lambda each: each.agreement, reverse=True
    )
    return Scatter(
        dots=tuple(
            Dot(
                number,
                *point,
                *place,
                _in_words(number, calibrated.named(each), each),
                each == calibrated.chosen,
                each.family == "full",
            )
            for (number, each), point, place in zip(numbered, points, places, strict=True)
        ),
        curve=tuple(f"{x(each.speed_up or 0.0):.1f},{y(each.agreement):.1f}" for each in curve),
        cut=any(each.agreement < low or (each.speed_up or 0.0) > right for each in curve),
        promised=None if calibrated.agreement is None else y(calibrated.agreement),
        full_speed=x(1.0),
        x_ticks=tuple(Tick(x(value), f"{value:g}×") for value in x_axis),
        y_ticks=tuple(Tick(y(value), f"{100 * value:.10g} %") for value in y_axis),
        title=f"{len(measured)} policies: the share of texts with the answer of all layers, against speed-up over all layers.",
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most` of them."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _in_words(number: int, name: str, candidate: Candidate) -> str:
    return (
        f"{number}: {name}, {candidate.speed_up or 0.0:.2f} times as fast as all layers, "
        f"{percent(candidate.agreement)} get the same answer"
    )


def _label_places(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each dot's number stands: beside it, away from the other dots and from the numbers before it."""
    placed: list[tuple[float, float]] = []
    for own, (x, y) in enumerate(points):
        others = [point for index, point in enumerate(points) if index != own] + placed

        def crowding(place: tuple[float, float], x: float = x, y: float = y, others: list[tuple[float, float]] = others) -> int:
            at = x + place[0], y + place[1]
            outside = not (LEFT < at[0] < WIDTH - RIGHT and TOP < at[1] < HEIGHT - BOTTOM)
            return sum(math.dist(at, other) < LABEL_SIZE for other in others) + 2 * outside

        far = [(2 * dx, 2 * dy) for dx, dy in LABEL_PLACES]
        dx, dy = min([*LABEL_PLACES, *far], key=crowding)
        placed.append((x + dx, y + dy))
    return placed


def histogram(exits: Sequence[AtExit], texts: int) -> list[Bar]:
    """A bar for each exit."""
    room = (WIDTH - LEFT / 2 - RIGHT) / len(exits)
    foot, most = HEIGHT - BOTTOM, max(each.leaving for each in exits) or 1
    scale = (foot - TOP - 18) / most
    bars = []
    for index, each in enumerate(exits):
        same, other = scale * each.leaving_same, scale * (each.leaving - each.leaving_same)
        bars.append(
            Bar(
                x=LEFT / 2 + room * (index + 0.14),
                width=0.72 * room,
                same_y=foot - same,
                same_height=same,
                other_y=foot - same - other,
                other_height=other,
                layer=each.layer,
                share=f"{100 * each.leaving / texts:.0f} %" if each.leaving in (0, texts) else _rounded(each.leaving / texts),
                title=f"{each.leaving:,} of {texts:,} texts leave after layer {each.layer}, {each.leaving_same:,} of them with "
                "the answer of all layers",
            )
        )
    return bars


def _rounded(share: float) -> str:
    """Percents without digits, but never 0 or 100 of some."""
    return "<1 %" if share < 0.005 else f"{100 * share:.0f} %" if share < 0.995 else ">99 %"


def steps(explanation: Explanation) -> list[Step]:
    """A bar for each exit of one text's way."""
    room = (WIDTH - 2 * RIGHT) / len(explanation.exits)
    values = [each.confidence if isinstance(each.confidence, float) else _score(each.answer) for each in explanation.exits]
    scores = explanation.exits[0].confidence is None
    low, high = (min(values), max(values)) if scores else (0.0, 1.0)
    found = []
    for index, (each, value) in enumerate(zip(explanation.exits, values, strict=True)):
        share = 1.0 if high == low else (value - low) / (high - low)
        height = 3 + 57 * share
        found.append(
            Step(
                x=RIGHT + room * (index + 0.14),
                width=0.72 * room,
                y=STEPS_BASE - height,
                height=height,
                layer=each.layer,
                state="left" if each.leaves else "passed" if each.criterion is None else "scored",
                same=each.same,
                text=f"{value:.3g}" if scores else _rounded(value) if value < 1 else "100 %",
            )
        )
    return found


def _score(answer: str | tuple[str, ...] | float) -> float:
    return answer if isinstance(answer, float) else 0.0


def shades(explanation: Explanation, most: float) -> list[int]:
    """For each token how strongly it is shaded, -100..100: by what it adds, against the `most` that a token adds."""
    if explanation.table is None:
        return [0] * len(explanation.tokens)
    return [round(100 * max(-1.0, min(1.0, value / most))) for value in explanation.table.added]


def most_adding(explanation: Explanation, count: int) -> list[tuple[str, float]]:
    """The tokens that add most to the predicted depth, and what they add, from the most on. Only those that add something."""
    if explanation.table is None:
        return []
    pairs = sorted(zip(explanation.tokens, explanation.table.added, strict=True), key=lambda pair: pair[1], reverse=True)
    return [pair for pair in pairs[:count] if pair[1] >= LEAST_NAMED]


def answer(exit_: TextAtExit) -> str:
    """An exit's answer to a text, in words."""
    if isinstance(exit_.answer, float):
        return f"{exit_.answer:.3g}"
    return exit_.answer if isinstance(exit_.answer, str) else ", ".join(exit_.answer) or "no label"


def said(explanation: Explanation) -> str:
    """What a text was answered, and what all layers say."""
    own = next(each for each in explanation.exits if each.leaves)
    full = explanation.exits[-1]
    if own is full:
        return f"Answer: {answer(own)}."
    if own.same is None:
        return f"Answer: {answer(own)}. All layers say {answer(full)}."
    return f"Answer: {answer(own)}. All layers say {'the same' if own.same else answer(full)}."
