"""The chat as other programs meet it: OpenAI's client on a real server, and the commands of operators."""

import subprocess
import sys
import threading
import time

import pytest
from chatting import live
from helpers import ROOT
from services import free_port

from sea_jax.labels.chat import FILE, ChatDuels, Pair
from sea_jax.serve import server


@pytest.fixture
def served(tmp_path):
    """A chat behind uvicorn, and a client of OpenAI's package."""
    import openai

    port = free_port()
    with (
        live(tmp_path, **{"serve.port": port, "serve.share": 0.0}) as chat,
        server.serve_pages(chat.run.config, "127.0.0.1", chat.chat, chat.engine, chat.learner, chat.duels),
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client, chat


def test_openais_client(served):
    import openai

    client, chat = served
    messages = [dict(role="user", content=chat.task.prompts["train"][0])]
    ask = lambda **options: client.chat.completions.create(model="sea_jax", messages=messages, **options)  # noqa: E731
    whole = ask(temperature=0)
    parts = list(ask(temperature=0, stream=True, stream_options=dict(include_usage=True)))
    assert (
        parts[-1].usage == whole.usage
        and parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content and len(parts) > 4
    assert client.models.list().data[0].id == "sea_jax"
    two = ask()
    while len(two.choices) == 1:
        two = ask(extra_body=dict(compare=True))
    assert two.model_extra["duel"] == 1
    with pytest.raises(openai.BadRequestError, match="top_p"):
        ask(top_p=0.5)


def test_requests_are_answered_while_the_policy_learns(served):
    """None of them fails, and versions change meanwhile."""
    client, chat = served
    versions, errors, end = set(), [], time.monotonic() + 60

    def ask():
        try:
            while len(versions) < 3 and time.monotonic() < end:
                found = client.chat.completions.create(
                    model="m", messages=[dict(role="user", content="a post")]
                )
                versions.add(found.model_extra["version"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    [thread.start() for thread in threads]
    while any(thread.is_alive() for thread in threads):
        shown = chat.duels.show("anna", Pair("x", " a", " b", b"", b"", 0))
        chat.duels.choose(shown.duel, "anna", "left")
        time.sleep(0.01)
    assert not errors and len(versions) > 2


def command(*arguments):
    call = [sys.executable, "-m", "sea_jax.serve", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_commands_of_operators(tmp_path):
    with ChatDuels(tmp_path) as duels:
        shown = duels.show("anna", Pair("x", "a", "b", b"", b"", 1, 0))
        duels.choose(shown.duel, "anna", "right" if shown.right == "b" else "left")
        at = f"--workdir={tmp_path}"
        done = command("status", at)
        assert done.stdout.strip() == (
            f"{tmp_path}: learning goes on; 1 pairs shown, 1 choices, of them 0 ties, 0 learned from; "
            "online win rate 1.000 of 1 comparisons"
        )
        assert "learning paused" in command("pause", at).stdout and duels.paused()
        assert "version 3 is taken up again" in command("rollback", at, "--version=3").stdout
        assert [one.version for one in duels.rollbacks()] == [3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "--workdir: absent"),
        (["status", "--workdir=nowhere"], f"nowhere has no {FILE}"),
        (["rollback", "--workdir=nowhere"], "--version: valid with `rollback`"),
        (["--workdir=nowhere", "--version=1"], "--version: valid with `rollback`"),
        (["--workdir=nowhere"], "--config: absent"),
        (["stop"], "unexpected argument 'stop'"),
    ],
)
def test_mistakes_are_one_line(arguments, said):
    done = command(*arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
