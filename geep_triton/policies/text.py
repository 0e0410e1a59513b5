"""The short form of policies: START+LEAVE+skip:MODE. Each part may have settings after commas."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections import Counter
from typing import Any

from geep_triton.checks import shorten
from geep_triton.policies.leave import Far, Patient, Steady, Sure
from geep_triton.policies.plan import PlannedAfter
from geep_triton.policies.policy import Policy
from geep_triton.policies.risk import LowRisk
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, TableAgreement, TableExit

# A part's name in the short form -> what it makes, and the field that the value behind the colon is for.
STARTS: dict[str, tuple[type, str | None]] = {
    "full": (LastLayer, None),
    "constant": (AtLayer, "layer"),
    "predicted": (TableExit, "statistic"),
    "allocated": (TableAgreement, "price"),
    "planned": (PlannedAfter, "layer"),
}
LEAVES: dict[str, tuple[type, str | None]] = {
    "threshold": (Sure, "threshold"), "patience": (Patient, "patience"),
    "distance": (Far, "distance"), "steady": (Steady, "change"), "risk": (LowRisk, "risk"),
}  # fmt: skip
# A part whose value is missing -> how it is written.
EXAMPLES = {
    "constant": "constant:3", "planned": "planned:2,price=0.02", "patience": "patience:2", "distance": "distance:0.5",
    "steady": "steady:0.1", "risk": "risk:0.05",
}  # fmt: skip
LISTS = ("threshold", "distance", "change", "risk")  # settings that may be one number for all exits, or one each
KNOWN = (
    "full, constant:LAYER, threshold, threshold:T, threshold:T/T/..., patience:N, distance:D, steady:D, risk:R, predicted, "
    "predicted:mean, predicted:Q, allocated:PRICE, planned:LAYER,price=PRICE (also mean_depth= or agreement=); a start "
    "and a leave, as in "
    "predicted:0.05+threshold:0.3; +skip:gates, "
    "+skip:planned, +skip:planned:PRICE or +skip:never at the end; further settings behind commas, as in "
    "threshold:0.2,criterion=margin,layers=2/4"
)
# Version 0.1 wrote these into saved models.
OLD_NAMES = {"decision": "statistic", "pooling": "regroup"}
OLD_VALUES = {("answer_head", "teacher"): "shared"}
OLD_DECISION = 0.05  # of "verified" where it named none


def parse_policy(text: str | Policy) -> Policy:
    """Make a policy from its short form. A `Policy` is returned as it is.

    "full", "constant:3", "predicted:0.9", "allocated:0.02" and "planned:2,price=0.02" are starts. "threshold:0.3",
    "patience:2", "risk:0.02", and for scores and label sets "distance:0.5" and "steady:0.1" are leaves. A start alone answers
    everybody there. A leave alone scores samples from the first exit on. Both are joined as in "predicted:0.05+threshold:0.3".
    "+skip:planned:2.5" may follow any of these.
    The setting `answer_head` belongs to the start.

    Forms of version 0.1 still parse: "verified:T" is "predicted:0.05+threshold:T" (with a price it is
    "allocated:PRICE+threshold:T"), `pooling` is `regroup`, and the answer head "teacher" is "shared".

    Args:
        text: the short form, or a policy.

    Raises:
        ValueError: this is not a known form (the error lists them).
        TypeError: this is neither a text nor a policy.
    """
    if not isinstance(text, str):
        if not isinstance(text, Policy):
            raise TypeError(f"policy must be a policy or its short form, got {shorten(text)}; known: {KNOWN}")
        return text
    parts = re.split(r"\+(?=[a-z])", text)  # not in the middle of 1e+16
    names = [re.split("[:,]", part)[0] for part in parts]
    if names[0] not in STARTS | LEAVES | {"verified": None}:
        raise ValueError(f"unknown policy {shorten(text)}; known: {KNOWN}")
    made: dict[str, Any] = {"start": FirstExit()}
    try:
        for index, (name, part) in enumerate(zip(names, parts, strict=True)):
            if name == "verified" and index == 0:
                made |= _read_verified(part)
            elif name in STARTS and index == 0:
                made["start"], head = _read_start(part)
                made |= head
            elif name in LEAVES and not made.keys() & {"leave", "skip"}:
                made["leave"] = _read_part(part, LEAVES)
            elif name == "skip" and "skip" not in made:
                made["skip"] = _read_skip(part.partition(":")[2])
            else:
                raise ValueError(f"{shorten(part)} has no place there")
        return Policy(**made)
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy {shorten(text)}: {error}; known: {KNOWN}") from error


def format_policy(policy: Policy) -> str:
    """The short form of a policy, from which `parse_policy` makes an equal policy. TypeError if it has none."""
    head = {} if policy.answer_head == "student" else {"answer_head": policy.answer_head}
    parts = [] if policy.start == FirstExit() else [_write_part(policy.start, STARTS, head)]
    if policy.leave is not None:
        parts.append(_write_part(policy.leave, LEAVES, {}))
    if policy.skip is not None:
        parts.append(f"skip:{policy.skip.mode}" + (f":{policy.skip.price!r}" if policy.skip.price else ""))
    return "+".join(parts)


def describe(policy: Policy) -> str:
    """The short form of a policy, or its `repr` if it has none."""
    try:
        return format_policy(policy)
    except TypeError:
        return repr(policy)


def _read_skip(text: str) -> Skip:
    """Read "gates", "never", "planned" or "planned:PRICE". ValueError for anything else."""
    mode, colon, price = text.partition(":")
    return Skip(mode, _read(price, float)) if colon else Skip(mode)


def _read_start(text: str) -> tuple[Any, dict[str, str]]:
    """A start, and the policy's answer head if it is given."""
    settings = text.split(",")
    heads = [setting for setting in settings if setting.startswith("answer_head=")]
    start = _read_part(",".join(setting for setting in settings if setting not in heads), STARTS)
    return start, {name: OLD_VALUES.get((name, value), value) for name, _, value in (head.partition("=") for head in heads)}


def _read_verified(text: str) -> dict[str, Any]:
    """The policy that version 0.1 called "verified": it starts at a table's exit and then uses a threshold."""
    first, *settings = text.split(",")
    of_table = [setting for setting in settings if setting.split("=")[0] in ("decision", "values", "price")]
    of_leave = [setting for setting in settings if setting not in of_table]
    prices = [setting for setting in of_table if setting.startswith("price=")]
    if prices:  # they decided alone
        of_table = prices
    elif not any(setting.startswith("decision=") for setting in of_table):
        of_table.insert(0, f"decision={OLD_DECISION}")
    name = "allocated" if prices else "predicted"
    return {
        "start": _read_part(",".join([name, *of_table]), STARTS),
        "leave": _read_part(",".join([first.replace("verified", "threshold"), *of_leave]), LEAVES),
    }


def _read_part(text: str, known: dict[str, tuple[type, str | None]]) -> Any:
    head, *settings = text.split(",")
    name, _, value = head.partition(":")
    kind, main_field = known[name]
    pairs = [setting.partition("=")[::2] for setting in settings]
    pairs = [(OLD_NAMES.get(key, key), content) for key, content in pairs]
    if value:
        pairs.insert(0, (main_field or "", value))
    types = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    if "" in settings:
        raise ValueError(f"{name} has a comma without a setting behind it")
    for key, _ in pairs:
        if key not in fields:
            raise ValueError(f"{name} has no setting {key!r}" if key else f"{name} takes no value")
    if twice := [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]:
        raise ValueError(f"{name} is told its {twice[0]} twice")
    missing = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING] if not pairs else []
    if missing:
        raise ValueError(f"{name} is missing its {missing[0]}, as in {EXAMPLES[name]}")
    return kind(**{key: _read(content, types[key]) for key, content in pairs})


def _write_part(part: Any, known: dict[str, tuple[type, str | None]], further: dict[str, str]) -> str:
    names = [name for name, (kind, _) in known.items() if type(part) is kind]
    if not names:
        raise TypeError(f"{shorten(part)} has no short form; those that have: {', '.join(STARTS | LEAVES)}")
    name, main_field = names[0], known[names[0]][1]
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    defaults = {field.name: field.default for field in dataclasses.fields(part)}
    changed = {key: _write(key, value) for key, value in values.items() if value != defaults[key]} | further
    head = f"{name}:{changed.pop(main_field)}" if main_field in changed else name
    return ",".join([head, *(f"{key}={value}" for key, value in changed.items())])


def _write(key: str, value: Any) -> str:
    if isinstance(value, (list, tuple)):
        text = "/".join(repr(float(item) if isinstance(item, float) else int(item)) for item in value)
        return f"{text}/" if key in LISTS and len(value) == 1 else text  # one of a list is no number for all exits
    return str(value)


def _read(text: str, kind: Any) -> Any:
    """Read a setting's value: a number, several numbers with slashes between them, or a word."""
    choices = typing.get_args(kind) or (kind,)
    if tuple[int, ...] in choices:
        return tuple(int(layer) for layer in text.split("/"))
    if kind is int:
        return int(text)
    try:
        return tuple(map(float, text.removesuffix("/").split("/"))) if "/" in text else float(text)
    except ValueError:
        if str in choices:
            return text
        raise ValueError(f"{text!r} is no number") from None
