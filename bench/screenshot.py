"""Takes the picture of a report that docs/report.md shows.

    python -m bench.screenshot --model runs/quickstart_fast

It needs Chromium. The model is the quickstart's, calibrated:
`geep calibrate runs/quickstart --texts examples/data/test.jsonl --agreement 0.98 -o runs/quickstart_fast`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from geep_triton import Engine
from geep_triton.files.rows import read_rows
from geep_triton.report.page import write_report

ROOT = Path(__file__).parent.parent
TEXTS = ROOT / "examples" / "data" / "dev.jsonl"
PICTURE = ROOT / "docs" / "report.png"
WIDTH, HEIGHT = 1000, 5000  # of the window; what is empty at its foot is cut off
SHOWN = 3  # texts
COLOURS = 256  # keep the file small
MARGIN = 40
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    """The path of a browser. SystemExit if there is none."""
    for name in BROWSERS:
        if (found := shutil.which(name)) is not None:
            return found
    raise SystemExit(f"a browser is needed: {', '.join(BROWSERS)}")


def picture_of(page: Path, width: int, height: int) -> Image.Image:
    """A page as a browser shows it, down to its last line."""
    taken = page.with_suffix(".png")
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--blink-settings=preferredColorScheme=1"]
    where = [f"--window-size={width},{height}", f"--screenshot={taken}", f"file://{page}"]
    subprocess.run([browser(), *always, *where], check=True, capture_output=True)
    image = Image.open(taken).convert("RGB")
    paper = image.getpixel((0, 0))
    rows = [y for y in range(image.height) if image.crop((0, y, image.width, y + 1)).getcolors(1) != [(image.width, paper)]]
    return image.crop((0, 0, image.width, min(image.height, rows[-1] + MARGIN)))


def main() -> None:
    """Write the page and take its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a calibrated model")
    parser.add_argument("--output", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(Engine.from_pretrained(arguments.model, device="cpu"), page, read_rows(TEXTS), SHOWN)
        picture_of(page, WIDTH, HEIGHT).quantize(COLOURS).save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
