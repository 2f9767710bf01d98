"""The pictures of this folder: pages of runs, as Chromium shows and prints them.

python docs/report/pictures.py RUN COMPARISON: folders with a report.html, the first of one model, the second of several runs.
Needs playwright, Chromium, pillow and pdftoppm.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
DESKTOP = {"viewport": {"width": 1020, "height": 1110}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1}


def opened(browser: Browser, folder: str, **options: object) -> Page:
    page = browser.new_context(offline=True, **options).new_page()
    page.goto((Path(folder).resolve() / "report.html").as_uri())
    return page


def section(page: Page, title: str, name: str) -> None:
    page.locator("section", has=page.get_by_role("heading", name=title)).first.screenshot(path=HERE / name)


def main(run: str, comparison: str) -> None:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-lcd-text"])
        light = opened(browser, run, **DESKTOP)
        light.locator(".map:visible .c").nth(3 * 11 + 4).hover()
        light.screenshot(path=HERE / "light.png")
        section(light, "The first to break", "first.png")
        section(light, "By class", "classes.png")
        dark = opened(browser, run, **DESKTOP, color_scheme="dark")
        dark.get_by_text("Gap: not known").first.click()
        dark.locator(".map:visible .c").nth(3 * 11 + 4).hover()
        dark.screenshot(path=HERE / "dark.png")
        phone = opened(browser, run, **PHONE)
        phone.locator(".map:visible .c").nth(3 * 11 + 4).tap()
        phone.evaluate("window.scrollTo(0, 0)")
        phone.screenshot(path=HERE / "phone.png", clip={"x": 0, "y": 0, "width": 390, "height": 1560}, full_page=True)
        several = opened(browser, comparison, **DESKTOP)
        several.locator(".map:visible .c").nth(3 * 11 + 4).hover()
        several.screenshot(path=HERE / "compare.png")
        with tempfile.TemporaryDirectory() as folder:
            light.pdf(path=f"{folder}/page.pdf", format="A4", print_background=True)
            subprocess.run(
                ["pdftoppm", "-r", "80", "-f", "1", "-l", "1", "-png", f"{folder}/page.pdf", f"{folder}/p"], check=True
            )
            shutil.copy(next(Path(folder).glob("p-*.png")), HERE / "print.png")
        browser.close()
    for picture in HERE.glob("*.png"):
        Image.open(picture).convert("RGB").save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
