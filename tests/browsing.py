"""A real browser, Debian's Chromium, for tests of pages. Makes screenshots if SCREENSHOTS names a folder."""

import contextlib
import os
import shutil
import time
from pathlib import Path


class Visitor:
    """Somebody at a page: presses keys, and sees what is shown."""

    def __init__(self, driver):
        self.driver = driver

    def log_in(self, address, name):
        self.driver.get(address)
        self.find("name").send_keys(name + "\n")

    def find(self, name):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.ID, name)

    def press(self, key):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def wait(self, condition, seconds=20):
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(WebDriverException):
                if found := condition():
                    return found
            time.sleep(0.02)
        raise TimeoutError(self.find("message").text)

    def screenshot(self, name):
        if folder := os.environ.get("SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@contextlib.contextmanager
def browser(visitor):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,720"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield visitor(driver)
    finally:
        driver.quit()
