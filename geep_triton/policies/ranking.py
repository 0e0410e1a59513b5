"""Who leaves early where the candidates of a query are ranked: those that cannot reach the first places any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geep_triton.answers import check_kind_of
from geep_triton.checks import check_int, check_number, shorten
from geep_triton.modeling.model import MultiExitBert

KNOWN = "top:K,margins=M/M/...,layers=L/L/..., as in top:10,margins=1.5/0.8,layers=2/4"


@dataclass(frozen=True)
class RankPolicy:
    """A candidate leaves at an exit where its score is more than a margin below the `top_k`-th best of its query.

    At least `top_k` candidates of each query reach the last layer, so that the first `top_k` are ordered by the full model's
    scores. Equal texts may get scores that differ by rounding, and a margin of 0 may part them. See
    `geep_triton.ops.outranked.outranked`.

    Args:
        top_k: how many candidates of a query are wanted, at least 1.
        margins: layer of an early exit -> margin, at least 0, in logits. Candidates are scored at these exits only.

    Raises:
        ValueError: there is no margin, or a value is out of range.
        TypeError: a value has another type.
    """

    top_k: int
    margins: Mapping[int, float]

    def __post_init__(self) -> None:
        check_int("top_k", self.top_k, 1, 2**31 - 1)
        if not isinstance(self.margins, Mapping):
            raise TypeError(f"margins must map layers to numbers, got {shorten(self.margins)}")
        if not self.margins:
            raise ValueError("margins must have at least one layer; without early exits there is no RankPolicy, but None")
        for layer, margin in self.margins.items():
            check_int("each layer of margins", layer, 1)
            check_number(f"margin of layer {layer}", margin, 0.0)
        in_order = {layer: float(self.margins[layer]) for layer in sorted(self.margins)}
        object.__setattr__(self, "margins", in_order)  # a copy that nobody changes later

    def __str__(self) -> str:
        """The short form, from which `parse_ranking` makes an equal policy."""
        margins, layers = ("/".join(map(repr, values)) for values in (self.margins.values(), self.margins))
        return f"top:{self.top_k},margins={margins},layers={layers}"

    def check(self, model: MultiExitBert) -> None:
        """Raise ValueError unless the model gives one score and has an early exit at each layer of `margins`."""
        check_kind_of(model.config, ("score",), "ranking")
        early = list(model.config.exit_layers[:-1])
        if unknown := [layer for layer in self.margins if layer not in early]:
            raise ValueError(f"layers of margins must be early exits of this model {early}, got {unknown[0]}")


def parse_ranking(text: str | RankPolicy) -> RankPolicy:
    """Make a policy from its short form, such as "top:10,margins=1.5/0.8,layers=2/4". A `RankPolicy` is returned as it is.

    Raises:
        ValueError: this is not the known form.
        TypeError: this is neither a text nor a policy.
    """
    if isinstance(text, RankPolicy):
        return text
    if not isinstance(text, str):
        raise TypeError(f"ranking must be a RankPolicy, its short form or None, got {shorten(text)}; known: {KNOWN}")
    head, _, settings = text.partition(",")
    values = dict(setting.partition("=")[::2] for setting in settings.split(","))
    try:
        name, _, top_k = head.partition(":")
        if name != "top" or values.keys() != {"margins", "layers"} or settings.count(",") != 1:
            raise ValueError("it has other parts")
        margins, layers = [float(m) for m in values["margins"].split("/")], [int(one) for one in values["layers"].split("/")]
        if len(margins) != len(layers) or len(set(layers)) != len(layers):
            raise ValueError("it needs one margin for each layer")
        return RankPolicy(int(top_k), dict(zip(layers, margins, strict=True)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"ranking {shorten(text)}: {error}; known: {KNOWN}") from error


def check_ranking(ranking: str | RankPolicy | None, model: MultiExitBert, top_k: int | None = 1) -> RankPolicy | None:
    """The policy by which the `top_k` best candidates are found; None: nobody leaves early.

    Args:
        ranking: a policy or its short form, or None.
        model: it ranks.
        top_k: how many are wanted; None: all. A policy that keeps fewer of them on is of no use then.

    Raises:
        ValueError: the model cannot rank by this policy, or `top_k` is below 1.
        TypeError: a value has another type.
    """
    if top_k is not None:
        check_int("top_k", top_k, 1)
    policy = None if ranking is None else parse_ranking(ranking)
    if policy is not None:
        policy.check(model)
    return None if policy is None or top_k is None or top_k > policy.top_k else policy
