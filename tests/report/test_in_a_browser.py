"""Headless Chromium looks at the page: three widths, two colour schemes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

LOOKED_AT = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll") && !e.closest("svg"));
const over = wide.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className);
const pictures = [...document.querySelectorAll("figure svg")].map(e => [e.clientWidth, e.clientHeight]);
const found = {
  width: innerWidth, scroll: document.documentElement.scrollWidth, over, pictures,
  paper: getComputedStyle(document.body).backgroundColor, requests: performance.getEntriesByType("resource").map(e => e.name),
};
parent.postMessage(JSON.stringify(found), "*");
</script>"""
AROUND = """<!doctype html><meta charset="utf-8"><body>{frames}<pre id="found"></pre><script>
const found = [];
addEventListener("message", message => {{
  found.push(message.data); document.getElementById("found").textContent = "[" + found.join(",") + "]";
}});
</script>{after}"""
WIDTHS = (400, 800, 1400)


def browse(chromium: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a headless browser. It may reach no host; what it logs is on stderr."""
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    blocked = ["--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files", "--virtual-time-budget=3000"]
    return subprocess.run([chromium, *always, *blocked, *arguments], capture_output=True, text=True, check=True, timeout=60)


@pytest.fixture(params=["calibrated", "hostile", "uncalibrated"])
def path(request, page, texts, model, tokenizer) -> Path:
    """A page with texts."""
    if request.param == "uncalibrated":
        from geep_triton import Engine

        return page(Engine(model, tokenizer, "threshold:0.5"), texts)[0]
    found = request.getfixturevalue(request.param)
    return page(found[0] if request.param == "calibrated" else found, texts)[0]


def test_a_page_in_a_browser(chromium, path, tmp_path):
    # A copy that looks at itself: the page itself has no script, and would let none run.
    html = path.read_text(encoding="utf-8")
    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("</body>", f"{LOOKED_AT}</body>")
    (tmp_path / "measured.html").write_text(measured, encoding="utf-8")
    frames = "".join(f'<iframe src="measured.html" width="{width}" height="900"></iframe>' for width in WIDTHS)
    (tmp_path / "around.html").write_text(AROUND.format(frames="", after=frames), encoding="utf-8")
    papers = set()
    for scheme in ("0", "1"):  # dark, light
        done = browse(
            chromium, f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", f"file://{tmp_path}/around.html"
        )
        found = json.loads(re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1])
        assert sorted(each["width"] for each in found) == sorted(WIDTHS)
        for each in found:
            assert each["scroll"] <= each["width"], each
            assert each["over"] == []
            assert each["requests"] == []
            assert each["pictures"]
            assert all(width > 200 and height > 50 for width, height in each["pictures"])
            papers.add(each["paper"])
    assert len(papers) == 2
    picture = tmp_path / "page.png"
    done = browse(chromium, "--window-size=1000,1400", f"--screenshot={picture}", f"file://{path}")
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert logged == []  # no errors, and nothing that the page's own policy had to block
    colours = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert max(count for count, _ in colours) < 0.97 * 1000 * 1400
    assert len(colours) > 50
