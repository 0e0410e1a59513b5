"""Write the quickstart's review corpus: train.jsonl, dev.jsonl and test.jsonl beside this file.

Every fragment was written for this project. In easy reviews one word gives away the opinion. In hard reviews it depends on a
negation, a contrast, a failed expectation or irony, so the whole sentence has to be read.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

SIZES = {"train": 2400, "dev": 400, "test": 1000}

THINGS = {
    "film": [
        "the film",
        "this movie",
        "the second season",
        "the documentary",
        "the director's new drama",
        "the sequel",
    ],
    "meal": ["the soup", "our dinner", "the tasting menu", "the pasta", "their breakfast buffet", "the curry"],
    "stay": ["the hotel", "our room", "the cabin by the lake", "the hostel", "the guest house", "the apartment"],
    "gear": ["the phone", "this laptop", "the coffee machine", "the headphones", "the printer", "the vacuum cleaner"],
    "book": ["the novel", "this biography", "the cookbook", "the last chapter", "her debut", "the short stories"],
    "help": [
        "the support team",
        "our waiter",
        "the repair shop",
        "the tour guide",
        "the delivery service",
        "the clinic",
    ],
}
PLURAL = {"the headphones", "the short stories"}
GOOD = {
    "film": ["gripping", "beautifully shot", "hilarious", "moving", "superb"],
    "meal": ["delicious", "perfectly seasoned", "fresh", "wonderful", "excellent"],
    "stay": ["spotless", "charming", "quiet", "comfortable", "lovely"],
    "gear": ["fast", "reliable", "brilliant", "sturdy", "a joy to use"],
    "book": ["captivating", "elegant", "witty", "unforgettable", "a delight"],
    "help": ["friendly", "quick", "attentive", "outstanding", "patient"],
}
BAD = {
    "film": ["boring", "badly acted", "pointless", "a mess", "painfully slow"],
    "meal": ["bland", "cold", "greasy", "inedible", "overcooked"],
    "stay": ["filthy", "noisy", "damp", "cramped", "awful"],
    "gear": ["slow", "flimsy", "useless", "unreliable", "a waste of money"],
    "book": ["tedious", "clumsy", "shallow", "forgettable", "unreadable"],
    "help": ["rude", "careless", "hopeless", "dismissive", "incompetent"],
}
LIKED = [
    "I would happily come back to it tomorrow",
    "it won me over completely",
    "I have told all my friends about it",
    "I could not have asked for more",
    "it turned out to be the best part of the week",
    "we talked about it with a smile all the way home",
]
DISLIKED = [
    "I would not wish it on anyone",
    "it lost me completely",
    "I have warned all my friends about it",
    "I could not wait for it to be over",
    "it turned out to be the worst part of the week",
    "we complained about it all the way home",
]
OPENERS = ["", "honestly, ", "in short, ", "for what it is worth, ", "after two weeks I can say that ", "my verdict: "]
CROWDS = ["everyone warned me that", "the reviews claimed that", "my sister swore that", "the poster promised that"]
HOPES = ["I expected", "I was told to expect", "from the photos I expected", "after last year I expected"]
EXTRAS = [
    "and that was clear from the first minute",
    "and I paid for it myself",
    "and we were a party of four",
    "and it was a rainy Tuesday",
    "and nothing else about the day stands out",
]


def verb(thing: str) -> str:
    return "were" if thing in PLURAL else "was"


def easy(kind: str, thing: str, good: str, bad: str, pick: random.Random) -> list[tuple[str, str]]:
    """Reviews in which a single word gives away the label."""
    opener, extra = pick.choice(OPENERS), pick.choice(EXTRAS)
    return [
        (f"{opener}{thing} {verb(thing)} {good}", "positive"),
        (f"{opener}{thing} {verb(thing)} {bad}", "negative"),
        (f"{opener}{thing} {verb(thing)} {good} {extra}", "positive"),
        (f"{opener}{thing} {verb(thing)} {bad} {extra}", "negative"),
        (f"{good}, simply {good}: that is {thing} for you", "positive"),
        (f"{bad}, simply {bad}: that is {thing} for you", "negative"),
    ]


def hard(kind: str, thing: str, good: str, bad: str, pick: random.Random) -> list[tuple[str, str]]:
    """Reviews that mention one opinion and hold the other."""
    was, crowd, hope = verb(thing), pick.choice(CROWDS), pick.choice(HOPES)
    liked, disliked = pick.choice(LIKED), pick.choice(DISLIKED)
    return [
        (f"{crowd} {thing} {was} {bad}, but {liked}", "positive"),
        (f"{crowd} {thing} {was} {good}, but {disliked}", "negative"),
        (f"{hope} {thing} to be {bad}; nothing of the sort, {liked}", "positive"),
        (f"{hope} {thing} to be {good}; nothing of the sort, {disliked}", "negative"),
        (f"nobody who was there could call {thing} {bad}", "positive"),
        (f"nobody who was there could call {thing} {good}", "negative"),
        (f"{thing} {was} anything but {bad}", "positive"),
        (f"{thing} {was} anything but {good}", "negative"),
        (f"how {thing} ever got called {bad} is beyond me", "positive"),
        (f"how {thing} ever got called {good} is beyond me", "negative"),
        (f"{thing} could so easily have been {bad}, and yet {liked}", "positive"),
        (f"{thing} could so easily have been {good}, and yet {disliked}", "negative"),
        (f"{thing} {was} {good} for ten minutes, after which {disliked}", "negative"),
        (f"{thing} {was} {bad} for ten minutes, after which {liked}", "positive"),
        (f"oh sure, {thing} {was} {good}, if you enjoy being disappointed", "negative"),
        (f"call {thing} {bad} if you must, I have rarely been happier", "positive"),
    ]


def corpus(seed: int) -> list[dict[str, str]]:
    """All distinct reviews, shuffled, with equal numbers of easy and hard ones."""
    pick = random.Random(seed)
    made: dict[str, dict[str, tuple[str, str]]] = {"easy": {}, "hard": {}}
    for kind, things in THINGS.items():
        for thing, good, bad in itertools.product(things, GOOD[kind], BAD[kind]):
            for level, make in (("easy", easy), ("hard", hard)):
                for text, label in make(kind, thing, good, bad, pick):
                    made[level][text[0].upper() + text[1:] + "."] = (label, level)
    rows = []
    for level in made.values():
        chosen = sorted(level.items())
        pick.shuffle(chosen)
        rows += chosen[: sum(SIZES.values()) // 2]
    pick.shuffle(rows)
    return [{"text": text, "label": label, "difficulty": level} for text, (label, level) in rows]


def main() -> None:
    rows = iter(corpus(seed=7))
    for split, size in SIZES.items():
        path = Path(__file__).parent / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in itertools.islice(rows, size)), encoding="utf-8")
        print(path, size)


if __name__ == "__main__":
    main()
