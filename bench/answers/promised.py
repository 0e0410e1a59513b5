"""What is promised of each task's answers, declared before it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.answers.tasks import GO_EMOTIONS, SST2, YELP


@dataclass(frozen=True)
class Promised:
    """Arguments of `calibrate`.

    Attributes:
        name: in tables.
        promises: name -> value.
        comparison: `decision` or `tolerance`, by which scores are compared.
    """

    name: str
    promises: Mapping[str, Any]
    comparison: Mapping[str, float] = field(default_factory=dict)


SAME_FIRST = 0.95  # of the queries
TOP_K = 5  # candidates, in the records of rankings
RANKED = Promised(f"same first {TOP_K}", {"same_top_k": SAME_FIRST})
RARER = "negative"  # sst2's class that is rarer in training
PROMISED = {
    YELP.name: (
        Promised("same side of 3 stars", {"agreement": 0.95}, {"decision": 3.0}),
        Promised("within half a star", {"agreement": 0.95}, {"tolerance": 0.5}),
    ),
    GO_EMOTIONS.name: (
        Promised("same set of labels", {"agreement": 0.95}),
        Promised("each label", {"label_agreement": 0.98}),
    ),
    SST2.name: (
        Promised(f"recall of {RARER}", {"class_recall": {RARER: 0.99}}),
        Promised(f"recall of {RARER}, and same class", {"class_recall": {RARER: 0.99}, "agreement": 0.95}),
    ),
}
