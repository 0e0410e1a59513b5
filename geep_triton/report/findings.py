"""Where exits do not pay, and where answers change most: plain sentences from a calibration."""

from __future__ import annotations

from collections.abc import Sequence

from geep_triton.calibrated import Breakdown, Calibrated, Group, percent
from geep_triton.promises.families import least_gain

NEAR_FULL = 0.9  # of all layers, from which on a group of texts gains nearly nothing
FEW = 20  # texts of a group that say little alone


def where_exits_do_not_pay(calibrated: Calibrated, num_layers: int) -> list[str]:
    """Sentences about policies, exits and texts that gain nothing. Empty where there are none."""
    found = []
    chosen = calibrated.chosen
    several = len(calibrated.full_depths) > 1
    if chosen is not None and chosen.family == "full":
        which = f"full depth in {chosen.dtype}" if several else "full depth"
        found.append(f"No policy was both good enough and faster than {which}: all texts run all layers.")
    for candidate in calibrated.candidates:
        gain = calibrated.over_own_full_depth(candidate)
        if candidate.family != "full" and gain is not None and gain < 1:
            which = " in its dtype" if several else ""
            found.append(f"“{calibrated.named(candidate)}” is only {gain:.2f} times as fast as full depth{which}.")
    found += faster_but_fragile(calibrated)
    if calibrated.unsafe:
        failed = "was shown to keep the promise" if calibrated.on_answers else "is within the budget"
        found.append(f"No setting of {listed(calibrated.unsafe)} {failed}.")
    if calibrated.breakdown is not None:
        found += unused_exits(calibrated.breakdown) + deep_groups(calibrated.breakdown, num_layers)
    return found


def faster_but_fragile(calibrated: Calibrated) -> list[str]:
    """Sentences about policies that are faster than what was chosen, but not by enough. Empty where there are none."""
    chosen = calibrated.chosen
    if chosen is None or chosen.speed_up is None or not calibrated.on_answers:
        return []
    return [
        f"“{calibrated.named(candidate)}” is {candidate.speed_up:.2f} times as fast as full depth, and was not chosen: it "
        f"breaks promises more easily where texts change, so it must be {least_gain(candidate.family):g} times as fast as the "
        "others."
        for candidate in calibrated.candidates
        if candidate.speed_up is not None and chosen.speed_up < candidate.speed_up
        if candidate.speed_up / least_gain(candidate.family) < chosen.speed_up / least_gain(chosen.family)
    ]


def unused_exits(breakdown: Breakdown) -> list[str]:
    """A sentence about early exits at which nobody left. Empty where there are none."""
    layers = [str(each.layer) for each in breakdown.exits[:-1] if not each.leaving]
    if not layers or len(layers) == len(breakdown.exits) - 1:
        return ["No text left before the last layer."] if layers else []
    return [f"No text left after layer{'s' if len(layers) > 1 else ''} {listed(layers)}, or the policy does not ask there."]


def deep_groups(breakdown: Breakdown, num_layers: int) -> list[str]:
    """Sentences about lengths and answers whose texts run nearly all layers. Empty where all texts do, or none of them."""
    groups = _named_groups(breakdown)
    deep = [(name, group) for name, group in groups if group.mean_layers >= NEAR_FULL * num_layers]
    if len(deep) == len(groups):
        return []
    return [
        f"Texts of {name} run {group.mean_layers:.1f} of {num_layers} layers on average ({group.texts:,} texts)."
        for name, group in deep
    ]


def below_promise(breakdown: Breakdown, agreement: float | None) -> list[str]:
    """A sentence about lengths and answers that agree less than was promised of all together. Empty where there are none."""
    if agreement is None:
        return []
    below = [
        f"{name}: {percent(group.agreement)} of {group.texts:,}"
        for name, group in _named_groups(breakdown)
        if group.agreement < agreement and group.texts >= FEW
    ]
    if not below:
        return []
    return [
        "The promise is about all texts together, not about each kind. Of the texts that were counted, some kinds agreed less, "
        f"which may be chance where they are few: {'; '.join(below)}."
    ]


def _named_groups(breakdown: Breakdown) -> list[tuple[str, Group]]:
    """All groups, with names for a sentence."""
    by_length = [(f"{group.name} tokens", group) for group in breakdown.by_length]
    return by_length + [(f"“{group.name}”", group) for group in breakdown.by_answer]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
