"""Opens a report in headless Chromium, clicks a number, and follows its lineage down to a raw image."""

import sys
import tempfile

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

chromium, report = sys.argv[1:]
options = webdriver.ChromeOptions()
options.binary_location = chromium
for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--window-size=1280,1600",
             f"--user-data-dir={tempfile.mkdtemp()}"):
    options.add_argument(flag)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
try:
    browser.get(f"file://{report}")
    tables = browser.find_elements(By.CSS_SELECTOR, "table[data-metric]")
    assert [table.get_attribute("data-metric") for table in tables] == ["dice", "iou", "accuracy"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".charts svg")) == 4, "one chart a site, and the average"
    pictures = browser.find_elements(By.CSS_SELECTOR, ".gallery img")
    assert pictures and all(browser.execute_script("return arguments[0].naturalWidth", p) > 0 for p in pictures)
    assert browser.find_elements(By.CSS_SELECTOR, 'svg[aria-label="stages"] rect')
    number = browser.find_elements(By.CSS_SELECTOR, "button.number")[4]
    text = number.text
    number.click()
    dialog = browser.find_element(By.ID, "lineage")
    assert dialog.get_attribute("open") is not None, "the click opened nothing"
    assert text in dialog.find_element(By.ID, "lineage-title").text
    # Open everything on the way down, level by level.
    for _ in range(6):
        for closed in dialog.find_elements(By.CSS_SELECTOR, "details:not([open]) > summary"):
            if closed.is_displayed():
                browser.execute_script("arguments[0].parentElement.open = true", closed)
    shown = dialog.text
    for part in ("scores.parquet", "model.safetensors", "weights tiny", "image phantom_0000", "code", "environment"):
        assert part in shown, f"the lineage does not show {part}"
    dialog.find_element(By.CSS_SELECTOR, "button.close").click()
    assert dialog.get_attribute("open") is None
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors, errors
finally:
    browser.quit()
