"""The chat in a real browser: an answer as it is written, a choice by a key, a reload, and an operator."""

import pytest
from browsing import Visitor, browser
from chatting import live
from services import free_port

from sea_jax.serve import server

pytestmark = pytest.mark.browser
SCRIPT = "<img src=x onerror=\"document.title='mine'\">"


class User(Visitor):
    """Somebody who chats."""

    def say(self, text):
        self.find("text").send_keys(text)
        self.find("send").click()

    def turns(self):
        from selenium.webdriver.common.by import By

        found = self.driver.find_elements(By.CSS_SELECTOR, "#turns article:not(.open)")
        return [(turn.get_attribute("class"), turn.get_attribute("textContent")) for turn in found]

    def click(self, action):
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, f"[data-action={action}]").click()

    def text(self):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.TAG_NAME, "main").text


@pytest.fixture
def chat(tmp_path):
    with (
        live(tmp_path, **{"serve.port": free_port(), "serve.control_share": 0.5}) as chat,
        server.serve_pages(chat.run.config, "127.0.0.1", chat.chat, chat.engine, chat.learner, chat.duels),
    ):
        yield chat, f"http://127.0.0.1:{chat.run.config.serve.port}/"


def test_a_conversation_with_choices_that_the_policy_learns_from(chat):
    chat, address = chat
    with browser(User) as anna:
        anna.log_in(address, "anna")
        for number in range(4):
            if number == 2:
                anna.find("new").click()
                assert anna.turns() == []
            anna.say(SCRIPT if number == 0 else f"turn {number}")
            anna.wait(lambda: anna.find("pair").is_displayed())
            texts = [anna.find(side).get_attribute("textContent") for side in ("left", "right")]
            if number == 1:
                anna.screenshot("chat_page")
            anna.driver.execute_script("document.activeElement.blur()")
            anna.press("12"[number % 2])
            anna.wait(lambda number=number: len(anna.turns()) == 2 * (number % 2) + 2)
            assert anna.turns()[-1] == ("assistant", texts[number % 2] or "…")
            assert not anna.find("pair").is_displayed()
        anna.driver.refresh()
        anna.wait(lambda: len(anna.turns()) == 4)
        anna.wait(lambda: chat.engine.version == 1)
        assert anna.driver.title == "Chat"  # the script in the conversation did not run
        with chat.duels.reading() as db:
            rows = db.execute("SELECT prompt, verdict FROM duels ORDER BY id").fetchall()
        assert rows[0][0] == SCRIPT and rows[1][0].startswith(f"[user]\n{SCRIPT}\n\n[assistant]\n")
        assert {verdict for _, verdict in rows} <= {"first", "second"} and len(rows) == 4
        anna.driver.get(f"{address}status")
        anna.screenshot("chat_status")
        anna.click("pause")
        anna.wait(lambda: "paused" in anna.text())
        anna.driver.get(address)
        anna.find("new").click()
        anna.say("one answer")  # as nobody learns
        anna.wait(lambda: len(anna.turns()) == 2)
        assert not anna.find("pair").is_displayed() and chat.duels.totals().shown == 4
        anna.driver.get(f"{address}status")
        anna.click("resume")
        anna.wait(lambda: "goes on" in anna.text())
        anna.click("rollback")
        anna.wait(lambda: chat.duels.last_rollback() is not None and chat.duels.last_rollback()[1] == 1)
        messages = [line["message"] for line in anna.driver.get_log("browser")]
        assert not messages, messages
