"""How a run over files treats them."""

from __future__ import annotations

from dataclasses import dataclass

from geep_triton.checks import check_bool, check_choice, check_int, check_kind
from geep_triton.files.formats import Format
from geep_triton.files.names import refuse_twice

BAD_ROWS = ("stop", "skip", "empty")


@dataclass(frozen=True)
class Settings:
    """How a run over files treats them.

    Attributes:
        columns: the columns of the input that are carried along; None: all.
        prefix: before the names of the answers' columns.
        bad_rows: what becomes of rows that cannot be answered: "stop"; "skip": they are left out, and written with the reason
            beside the output; "empty": they stay, with empty answers, and a column "error" says why.
        form: format of the outputs; None: by the name of the output, in a folder that of the input.
        overwrite: replace a single output that is there.
        window: how many rows are answered together; None: as the answerer says.

    Raises:
        ValueError: a value is out of range, or names a column twice.
        TypeError: a value has another type.
    """

    columns: tuple[str, ...] | None = None
    prefix: str = ""
    bad_rows: str = "stop"
    form: Format | None = None
    overwrite: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        check_choice("bad_rows", self.bad_rows, BAD_ROWS)
        check_bool("overwrite", self.overwrite)
        if self.window is not None:
            check_int("window", self.window, 1)
        if self.columns is not None:
            check_kind("columns", self.columns, tuple)
            refuse_twice(self.columns)
