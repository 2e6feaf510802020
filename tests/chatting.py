"""A chat on a small run, in this process: its learner in a thread, its pages behind a client."""

import contextlib
import json
import re
import threading
import time

from ml_collections import ConfigDict
from small_run import small_run
from starlette.testclient import TestClient

from sea_jax.errors import StoppedError
from sea_jax.experiment.run import open_run
from sea_jax.labels.chat import ChatDuels
from sea_jax.serve.chat import Chat
from sea_jax.serve.learner import ChatOracle, Learner
from sea_jax.serve.page import Access, ChatPage
from sea_jax.serve.server import make_engine

# Random weights are as unsure as they are: all requests of the page get two answers.
FIELDS = {
    "ensemble.kind": "mlp", "serve.share": 1.0, "serve.least_std": 0.0, "serve.control_share": 0.0, "serve.pairs": 100, "serve.at_once": 4,
    "serve.chunk": 2, "oracle.kind": "people", "checkpoint.every_s": 0.0, "checkpoint.keep": 9, "train.query_budget": 64,
    "eval.every_queries": 1000, "serve.requests_per_s": 1e6,
}  # fmt: skip


class Live:
    """A chat that is served."""

    def __init__(self, opened, engine, learner, duels, access, raised):
        self.raised = raised  # in the learner's thread
        self.opened, self.engine, self.learner, self.duels = opened, engine, learner, duels
        self.run, self.task, self.access = opened.run, opened.run.actor.task, access
        self.chat = Chat(self.task, engine, duels, learner, self.run.config)
        self.app = ChatPage(self.chat, engine, learner, duels, access).app

    def client(self, name="anna", token=""):
        """A browser of somebody who has logged in."""
        client = TestClient(self.app, base_url="http://localhost", follow_redirects=False)
        if name:
            assert client.post("/login", data=dict(name=name, token=token)).status_code == 303
            client.headers["x-csrf-token"] = re.search(
                r'name="csrf" content="([^"]+)"', client.get("/").text
            )[1]
        return client

    def ask(self, client, *contents):
        """The events of the answer to a conversation, users' and assistant's turns in turn."""
        roles = ("user", "assistant") * len(contents)
        messages = [dict(role=role, content=text) for role, text in zip(roles, contents, strict=False)]
        reply = client.post("/api/chat", json=dict(messages=messages))
        assert reply.status_code == 200, reply.text
        return [json.loads(line.removeprefix("data: ")) for line in reply.text.strip().split("\n\n")]

    def pair(self, client, *contents):
        """Two answers to a conversation, as `ask`; where all heads agree, or both are equal, it asks again."""
        while True:
            if two := self.ask(client, *contents)[0].get("two"):
                return two

    def choose(self, client, number, pick=max):
        """Asks about a prompt of the task, and chooses the left or right text that `pick` takes; returns the pair."""
        prompts = self.task.prompts["train"]
        two = self.pair(client, prompts[number % len(prompts)])
        side = "left" if pick(two["left"], two["right"]) == two["left"] else "right"
        reply = client.post("/api/choose", json=dict(duel=two["duel"], choice=side))
        assert reply.status_code == 200, reply.text
        return two

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert not self.raised, self.raised
            assert time.monotonic() < end, "too late"
            time.sleep(0.02)


@contextlib.contextmanager
def live(folder, method="ee_ts", learns=True, access=None, **fields):
    """Serves a chat while the context lasts, then stops and saves it, as a signal does."""
    small = small_run(folder / "small", method, **FIELDS | fields)
    config = ConfigDict(small.config.to_dict())
    config.methods, config.overrides = (method,), {}
    access = access or Access(hosts=("localhost",), requests_per_s=1e6)
    found, raised, ready, end = [], [], threading.Event(), threading.Event()

    def run(duels):
        """Opens the run where it learns, as its journal is of one thread."""
        labeller_of = lambda own, _: ChatOracle(duels, own.oracle.ties)  # noqa: E731
        with open_run(config, small.assets, method, 0, folder, labeller_of=labeller_of) as opened:
            engine = make_engine(opened, small.assets)
            learner = Learner(opened, duels, engine)
            with engine.running():
                found.append(Live(opened, engine, learner, duels, access, raised))
                ready.set()
                learner.learn() if learns else end.wait()

    def work(duels):
        try:
            run(duels)
        except BaseException as error:
            raised.append(error)
        ready.set()

    with ChatDuels(folder, config.serve.answer_s) as duels:
        thread = threading.Thread(target=work, args=(duels,))
        thread.start()
        ready.wait()
        assert not raised, raised
        try:
            yield found[0]
        finally:
            found[0].opened.stop.signal = "SIGTERM"
            end.set()
            thread.join()
    assert [type(error) for error in raised] == [StoppedError] * learns, raised
