"""The data sets, declared before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """What is trained and judged on.

    Attributes:
        name: folder under GEEP_DATA.
        language: of its texts.
        train, test: at most so many rows, drawn once at random and the same for all arms and seeds.
        max_length: tokens. Longer texts are cut.
        metric: "accuracy", "matthews", or "map" of the candidates of each question that has a right answer.
        start: the data set that the model is trained on first, or None.
    """

    name: str
    language: str
    train: int
    max_length: int
    test: int = 5_000
    metric: str = "accuracy"
    start: str | None = None


SST2 = DataSet("sst2", "English", 4_000, 64)
AG_NEWS = DataSet("ag_news", "English", 4_000, 96)
SNLI = DataSet("snli", "English", 4_000, 64)
YELP = DataSet("yelp_stars", "English", 4_000, 128)
BOOKS = DataSet("book_review_zh", "Chinese", 4_000, 96)
HOTELS = DataSet("chnsenticorp", "Chinese", 4_000, 128)
SHOPPING = DataSet("shopping_review_zh", "Chinese", 4_000, 96)
WEIBO = DataSet("weibo_emotion6_zh", "Chinese", 4_000, 96)
RTE = DataSet("rte", "English", 4_000, 128, start="snli")
SCITAIL = DataSet("scitail", "English", 4_000, 96)
MRPC = DataSet("mrpc", "English", 4_000, 128)
COLA = DataSet("cola", "English", 4_000, 32, metric="matthews")
WNLI = DataSet("wnli", "English", 4_000, 128)
WIKIQA = DataSet("wikiqa", "English", 4_000, 96, metric="map")
TUNING_ROWS = 1_000  # at most: of dev, or else held out of the training rows
HELD_OUT = 0.1  # of the training rows, where there is no dev
SETS = {
    one.name: one for one in (SST2, AG_NEWS, SNLI, YELP, BOOKS, HOTELS, SHOPPING, WEIBO, RTE, SCITAIL, MRPC, COLA, WNLI, WIKIQA)
}
