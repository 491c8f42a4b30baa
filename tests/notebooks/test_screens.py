"""The kept notebooks in JupyterLab in a real browser: their plots are drawn, fit, and nothing is asked of the network or of the reader.

Needs a Chromium (Debian: apt install chromium-headless-shell); skipped, and said so, without one.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal

import aiohttp
import pytest

from evals.notebook import FOLDER

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"))), None)
PLOTTED = ["30_compare_with_hosted", "40_decide_routes", "50_what_it_costs"]
# A chart's canvas: how wide, how wide its cell's output is, and how many of its pixels have a colour.
_CHARTS = """[...document.querySelectorAll('.vega-embed canvas')].map(canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let coloured = 0;
  for (let at = 0; at < pixels.length; at += 4)
    if (pixels[at + 3] > 128 && Math.max(...pixels.slice(at, at + 3)) - Math.min(...pixels.slice(at, at + 3)) > 60) coloured++;
  return [canvas.getBoundingClientRect().right, canvas.closest('.jp-OutputArea-output').getBoundingClientRect().right, coloured];
})"""


class Page:
    """A tab, over Chromium's DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.sent, self.urls = socket, 0, set()

    async def call(self, method, **params):
        self.sent += 1
        await self.socket.send_json({"id": self.sent, "method": method, "params": params})
        async for message in self.socket:
            told = json.loads(message.data)
            if told.get("method") == "Network.requestWillBeSent":
                self.urls.add(told["params"]["request"]["url"])
            if told.get("id") == self.sent:
                return told["result"]
        raise AssertionError("the browser ended")

    async def value(self, code):
        return (await self.call("Runtime.evaluate", expression=code, returnByValue=True))["result"].get("value")

    async def until(self, code):
        async with asyncio.timeout(120):
            while not (found := await self.value(code)):
                await asyncio.sleep(0.2)
        return found


@contextlib.asynccontextmanager
async def tab(folder):
    """One tab of a browser of its own, tall enough to show a whole notebook."""
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log, start_new_session=True)
    try:
        async with asyncio.timeout(120):
            while not (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", (folder / "log").read_text())):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.1)
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{found[1]}/json/new?about:blank") as answer:
                address = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                await page.call("Network.enable")
                await page.call("Emulation.setDeviceMetricsOverride", width=1280, height=4000, deviceScaleFactor=1, mobile=False)
                yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Debian's program is a script that leaves the browser behind
        await process.wait()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the screens are not checked (apt install chromium-headless-shell)")
async def test_plots_are_drawn_and_fit(lab, tmp_path):
    """Every kept chart is drawn with its marks and inside its cell; JupyterLab asks for no kernel, and every address is this machine's."""
    async with tab(tmp_path) as page:
        for name in PLOTTED:
            kept = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
            charts = json.dumps(kept).count('"application/vnd.vegalite.v5+json"')
            await page.call("Page.navigate", url=f"{lab[1]}doc/tree/{name}.ipynb?token={lab[2]}")
            await page.until(f"location.href.includes('{name}') && document.querySelectorAll('.vega-embed canvas').length >= {charts}")
            drawn = await page.until(f"(found => found.length === {charts} && found.every(one => one[2] > 50) && found)({_CHARTS})")
            assert charts and all(right <= edge + 1 for right, edge, _ in drawn), (name, drawn)
            assert await page.value("document.querySelectorAll('.jp-Dialog').length") == 0, name
        outside = {url for url in page.urls if not url.startswith((lab[1], lab[1].replace("http", "ws"), "data:", "blob:"))}
        assert outside == set()
