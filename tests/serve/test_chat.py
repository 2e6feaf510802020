"""A chat that learns: what users get, what becomes of their choices, and what operators do."""

import json
import sqlite3

import jax
import numpy as np
import pytest
from chatting import live
from small_run import FEW_UPDATES

from sea_jax.actors.sampler import sample_now
from sea_jax.labels.chat import Pair
from sea_jax.labels.journal import FILE
from sea_jax.serve import server
from sea_jax.serve.page import Access

TOKEN, OPERATOR = "a token of the users", "a token of operators"


def leaves(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def journal(folder):
    with sqlite3.connect(folder / "runs/ee_ts-seed0" / FILE) as db:
        columns = (
            "step, row, prompt, first, second, first_tokens, second_tokens, state, prefers_first, labelled_by"
        )
        return db.execute(f"SELECT {columns} FROM duels ORDER BY id").fetchall()


def test_choices_become_labels_and_the_policy_learns_from_them(tmp_path):
    with live(tmp_path) as chat:
        anna, ben = chat.client("anna"), chat.client("ben")
        before = leaves(chat.run.state.policy.params)
        pairs = [chat.choose(anna if i % 2 else ben, i) for i in range(8)]
        chat.wait(lambda: chat.engine.version == 2)
        after = leaves(chat.run.state.policy.params)
        facts = anna.get("/api/status").json()
        assert facts["labels"] == 8 and facts["version"] == 2 and facts["pairs"]["learned"] == 8
        assert facts["pairs"] == dict(shown=8, answered=8, ties=0, learned=8)
    rows = journal(tmp_path)
    assert [row[:2] for row in rows] == [(i // 4, i % 4) for i in range(8)]
    for i, (two, row) in enumerate(zip(pairs, rows, strict=True)):
        _, _, prompt, first, second, *ids, state, prefers_first, by = row
        assert prompt == chat.task.prompts["train"][i] and {first, second} == {two["left"], two["right"]}
        assert (first if prefers_first else second) == max(two["left"], two["right"])
        assert state == "answered" and by == f"user {'anna' if i % 2 else 'ben'}"
        for text, tokens in zip((first, second), ids, strict=True):  # those that were sampled, EOS included
            tokens = np.frombuffer(tokens, "<i4")
            assert chat.task.decode(tokens, np.ones(len(tokens), bool)) == text
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_an_answer_is_that_of_the_policy(tmp_path):
    """Greedily, as programs ask by OpenAI's API; streamed, the parts are the whole."""
    with live(tmp_path, learns=False) as chat:
        prompt = chat.task.prompts["train"][0]
        out = sample_now(
            chat.run.actor.sampler, chat.run.policy, *chat.task.encode_prompts([prompt]), jax.random.key(0),
            num_responses=1, temperature=0.0,
        )  # fmt: skip
        ((expected,),) = chat.task.decode(np.array(out.tokens), np.array(out.mask))
        api = chat.client("")
        body = dict(model="m", messages=[dict(role="user", content=prompt)], temperature=0)
        found = api.post("/v1/chat/completions", json=body).json()
        assert found["choices"][0]["message"]["content"] == expected
        size = int(out.mask.sum())
        assert found["usage"]["completion_tokens"] == size
        reason = "stop" if int(out.tokens[0, 0, size - 1]) == chat.task.eos_id else "length"
        assert found["choices"][0]["finish_reason"] == reason
        short = api.post("/v1/chat/completions", json=body | dict(max_tokens=2)).json()
        assert short["usage"]["completion_tokens"] == 2 and expected.startswith(
            short["choices"][0]["message"]["content"]
        )


def test_where_the_posterior_is_sure_there_is_one_answer(tmp_path):
    with live(tmp_path, learns=False, **{"serve.least_std": 0.5}) as chat:
        events = chat.ask(chat.client(), chat.task.prompts["train"][0])
        assert [*events[0]] == ["part"] and events[-1]["version"] == 0
        assert chat.duels.totals().shown == 0


def test_control_pairs_compare_with_the_starting_policy(tmp_path, monkeypatch):
    with live(tmp_path, **{"serve.control_share": 1.0}) as chat:
        anna = chat.client()
        for i in range(4):
            chat.choose(anna, i)  # version 0 is the starting policy: no control
        assert chat.duels.online().compared == 0
        chat.wait(lambda: chat.engine.version == 1)
        for i in range(3):
            chat.choose(anna, i)
        assert chat.duels.online().compared == 3
        with chat.duels.reading() as db:
            rows = db.execute("SELECT reference, version FROM duels ORDER BY id").fetchall()
        assert rows == [(None, 0)] * 4 + [(1, 1)] * 3
        assert anna.get("/api/status").json()["online"]["compared"] == 3


def test_a_stopped_chat_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Choices come at other times, and batches, parameters and journal are the same to the bit."""
    for name, stops in (("whole", ()), ("stopped", (4, 10))):
        folder, given = tmp_path / name, 0
        for until in (*stops, 16):
            with live(folder, learns=False, **{"serve.share": 1.0}) as chat:
                anna = chat.client()
                prompts = chat.task.prompts["train"]
                while given < until:
                    texts = f" a {given}", f" b {given}"
                    ids = [chat.task.response_ids([text])[0][: chat.task.response_length] for text in texts]
                    tokens = [np.array(one, "<i4").tobytes() for one in ids]
                    shown = chat.duels.show("anna", Pair(prompts[given % 8], *texts, *tokens, 0))
                    left = "left" if given % 3 else "right"
                    wanted = (
                        shown.left.startswith(" a") if left == "left" else not shown.left.startswith(" a")
                    )
                    chat.duels.choose(shown.duel, "anna", "left" if wanted else "right")
                    given += 1
                assert anna.get("/api/status").status_code == 200
            with live(folder) as chat:
                chat.wait(lambda chat=chat, until=until: chat.run.step == until // 4)
                state = chat.run.state
        if name == "whole":
            expected, rows = state, journal(folder)
    assert equal(expected.policy, state.policy) and equal(expected.ensemble, state.ensemble)
    assert journal(folder) == rows and len(rows) == 16


def test_paused_learning_keeps_choices_for_later(tmp_path):
    with live(tmp_path) as chat:
        anna = chat.client()
        chat.duels.set_paused(True)
        assert [*chat.ask(anna, "a post")[0]] == ["part"]  # nobody is asked in vain
        chat.duels.set_paused(False)
        pairs = [chat.pair(anna, f"post {i}") for i in range(4)]
        assert anna.post("/api/operate", json=dict(action="pause")).json()["paused"] is True
        for two in pairs:
            anna.post("/api/choose", json=dict(duel=two["duel"], choice="left"))
        with pytest.raises(AssertionError, match="too late"):
            chat.wait(lambda: chat.engine.version == 1, seconds=1)
        assert anna.post("/api/operate", json=dict(action="resume")).json()["paused"] is False
        chat.wait(lambda: chat.engine.version == 1)


def test_no_more_pairs_wait_than_may(tmp_path):
    """So that a policy does not learn from answers of much older versions."""
    with live(tmp_path, **{"serve.pairs": 6}) as chat:
        anna, api = chat.client(), chat.client("")
        chat.duels.set_paused(True)
        chat.duels.set_paused(False)
        pairs = [chat.pair(anna, f"post {i}") for i in range(6)]
        assert [*chat.ask(anna, "a post")[0]] == ["part"] and chat.duels.waiting() == 6
        body = dict(messages=[dict(role="user", content="a post")], compare=True)
        assert len(api.post("/v1/chat/completions", json=body).json()["choices"]) == 1
        for two, choice in zip(pairs, ["tie", "both_bad", "left", "left", "left", "skip"], strict=True):
            anna.post("/api/choose", json=dict(duel=two["duel"], choice=choice))
        assert chat.duels.waiting() == 3 and chat.duels.waiting(with_ties=True) == 4
        chat.pair(anna, "a post")


def test_a_rollback_takes_up_a_policy_again_and_keeps_the_labels(tmp_path):
    with live(tmp_path) as chat:
        anna = chat.client()
        chat.wait(lambda: chat.opened.saved.steps() == [])
        for i in range(4):
            chat.choose(anna, i)
        chat.wait(lambda: chat.learner.versions() == [1])
        first = leaves(chat.run.state.policy)
        for i in range(8):
            chat.choose(anna, i)
        chat.wait(lambda: chat.learner.versions() == [3, 2, 1])
        third, ensemble = leaves(chat.run.state.policy), leaves(chat.run.state.ensemble)
        assert not equal(first, third)
        assert anna.post("/api/operate", json=dict(action="rollback", version=9)).status_code == 400
        assert anna.post("/api/operate", json=dict(action="rollback", version=1)).status_code == 200
        chat.wait(lambda: anna.get("/api/status").json()["rollback"]["step"] == 3)
        assert equal(chat.run.state.policy, first) and equal(chat.run.state.ensemble, ensemble)
        assert chat.run.labeller.num_queries == 12 and chat.run.step == 3
    with live(tmp_path) as chat:  # whose last checkpoint is of before the rollback
        chat.wait(lambda: chat.opened.run.actor.ahead is not None and equal(chat.run.state.policy, first))
        for i in range(4):
            chat.choose(chat.client(), i)
        chat.wait(lambda: chat.engine.version == 4)


def test_a_rollback_to_a_version_that_is_gone_says_so(tmp_path):
    with live(tmp_path) as chat:
        chat.duels.ask_rollback(7)
        chat.wait(lambda: chat.duels.last_rollback()[2])
        assert "Status" in chat.client().get("/status").text
        assert "no checkpoint" in chat.client().get("/status").text


def test_after_the_budget_it_goes_on_answering(tmp_path):
    with live(tmp_path, **{"train.query_budget": 6}) as chat:
        anna = chat.client()
        for i in range(6):
            chat.choose(anna, i)
        chat.wait(lambda: chat.learner.ended)
        assert [*chat.ask(anna, "a post")[0]] == ["part"]
        facts = anna.get("/api/status").json()
        assert facts["labels"] == 6 and facts["ended"] == "the budget of 6 labels is spent"
        assert anna.post("/api/operate", json=dict(action="rollback", version=1)).status_code == 409


def test_several_turns_are_one_prompt(tmp_path):
    with live(tmp_path, learns=False) as chat:
        anna = chat.client()
        two = chat.pair(anna, "a", "b", "c")
        with chat.duels.reading() as db:
            assert db.execute("SELECT prompt FROM duels").fetchall() == [
                ("[user]\na\n\n[assistant]\nb\n\n[user]\nc",)
            ]
        assert two["duel"] == 1


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "valid is a list"),
        ([], "valid is a list"),
        ([dict(role="user", content="a")] * 201, "valid is a list of 1 to 200"),
        ([dict(role="robot", content="a")], "messages[0].role"),
        ([dict(role="user", content=" ")], "messages[0].content"),
        ([dict(role="user", content="\ud800")], "messages[0].content"),
        ([dict(role="user", content=[dict(type="image_url", image_url="x")])], "messages[0].content"),
        ([dict(role="user", content="a"), dict(role="assistant", content="b")], "messages[1].role"),
        ([dict(role="user", content="word " * 500)], "tokens; valid: at most"),
    ],
)
def test_conversations_that_cannot_be_answered(refusing, messages, said):
    client, _ = refusing
    sent = dict(content=json.dumps(dict(messages=messages)), headers={"content-type": "application/json"})
    reply = client.post("/api/chat", **sent)
    assert reply.status_code == 400 and said in reply.json()["error"]
    reply = client.post("/v1/chat/completions", **sent)
    assert reply.status_code == 400 and said in reply.json()["error"]["message"]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    with live(tmp_path_factory.mktemp("refusing"), learns=False) as chat:
        yield chat.client(), chat


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(n=2), "n: valid is 1"),
        (dict(tools=[1]), "tools"),
        (dict(stop="x"), "stop"),
        (dict(stream=1), "stream"),
        (dict(stream_options=3, stream=True), "stream_options"),
        (dict(temperature=3), "temperature"),
        (dict(temperature="hot"), "temperature"),
        (dict(max_tokens=0), "max_completion_tokens"),
        (dict(user=7), "user"),
        (dict(compare=True, stream=True), "compare"),
        (dict(compare="yes"), "compare"),
    ],
)
def test_options_that_are_not_known_are_refused(refusing, fields, said):
    client, _ = refusing
    body = dict(messages=[dict(role="user", content="a")]) | fields
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400 and said in reply.json()["error"]["message"]


def test_a_failed_batch_is_said_and_the_next_one_is_answered(tmp_path, monkeypatch):
    with live(tmp_path, learns=False, **{"serve.share": 0.0}) as chat:
        anna, api = chat.client(), chat.client("")
        body = dict(messages=[dict(role="user", content="a")])
        with monkeypatch.context() as broken:
            broken.setattr(chat.engine, "_answer_one", lambda *_: 1 / 0)
            assert chat.ask(anna, "a") == [dict(error="The answer failed.")]
            assert api.post("/v1/chat/completions", json=body).status_code == 500
            assert "the answer failed" in api.post("/v1/chat/completions", json=body | dict(stream=True)).text
        assert "end" in chat.ask(anna, "a")[-1]


def test_too_many_waiting_requests_are_told_to_come_again(tmp_path, monkeypatch):
    with live(tmp_path, learns=False, **{"serve.waiting": 1, "serve.share": 0.0}) as chat:
        anna, api = chat.client(), chat.client("")
        with monkeypatch.context() as held:
            held.setattr(chat.engine, "_waiting", [None])
            body = dict(messages=[dict(role="user", content="a")])
            reply = anna.post("/api/chat", json=body)
            assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
            assert api.post("/v1/chat/completions", json=body).status_code == 503
        assert "end" in chat.ask(anna, "a")[-1]


def test_tokens_of_users_programs_and_operators(tmp_path):
    access = Access(TOKEN, OPERATOR, ("localhost",), 1e6)
    with live(tmp_path, access=access) as chat:
        stranger, anna = chat.client(""), chat.client("anna", TOKEN)
        body = dict(messages=[dict(role="user", content="a")])
        assert stranger.post("/login", data=dict(name="eve", token="x")).status_code == 403
        assert stranger.post("/api/chat", json=body).status_code == 401
        for path, method in (
            ("/v1/chat/completions", "POST"),
            ("/v1/feedback", "POST"),
            ("/v1/models", "GET"),
        ):
            assert stranger.request(method, path, json=body).status_code == 401, path
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert stranger.post("/v1/chat/completions", json=body, headers=bearer).status_code == 200
        pause = dict(action="pause")
        for token in ("", TOKEN, None, 3):
            assert anna.post("/api/operate", json=pause | dict(token=token)).status_code == 403
        assert anna.post("/api/operate", json=pause | dict(token=OPERATOR)).status_code == 200
        assert anna.post("/api/operate", json=dict(action="x", token=OPERATOR)).status_code == 400
        assert anna.post("/api/chat", json=body, headers={"origin": "http://evil"}).status_code == 403
        assert anna.post("/api/chat", json=body, headers={"x-csrf-token": "x"}).status_code == 403
    with live(tmp_path, access=Access(TOKEN, "", ("localhost",), 1e6)) as chat:
        anna = chat.client("anna", TOKEN)  # without a token of operators nobody operates on the page
        assert anna.post("/api/operate", json=dict(action="pause", token="")).status_code == 403
        assert 'data-action="pause"' not in anna.get("/status").text


def test_another_user_cannot_choose(tmp_path):
    with live(tmp_path, learns=False) as chat:
        anna, eve = chat.client("anna"), chat.client("eve")
        duel = chat.pair(anna, "a post")["duel"]
        assert eve.post("/api/choose", json=dict(duel=duel, choice="left")).status_code == 409
        assert eve.post("/v1/feedback", json=dict(duel=duel, choice=0)).status_code == 409
        assert anna.post("/api/choose", json=dict(duel=duel, choice="middle")).status_code == 400
        assert anna.post("/api/choose", json=dict(duel="x", choice="left")).status_code == 400
        assert chat.duels.totals().answered == 0


def test_a_program_compares_by_the_api(tmp_path):
    with live(tmp_path) as chat:
        api = chat.client("")
        assert api.get("/v1/models").json()["data"][0]["version"] == 0
        for i in range(4):
            body = dict(messages=[dict(role="user", content=f"post {i}")], compare=True, user="robot")
            found = {}
            while "duel" not in found:
                found = api.post("/v1/chat/completions", json=body).json()
            texts = [choice["message"]["content"] for choice in found["choices"]]
            feedback = dict(duel=found["duel"], choice=texts.index(min(texts)), user="robot")
            assert api.post("/v1/feedback", json=feedback).status_code == 200
            assert api.post("/v1/feedback", json=feedback | dict(choice=True)).status_code == 400
        chat.wait(lambda: chat.engine.version == 1)
        assert api.get("/v1/models").json()["data"][0]["version"] == 1
    rows = journal(tmp_path)
    assert all(
        (row[3] if row[8] else row[4]) == min(row[3], row[4]) and row[9] == "user robot" for row in rows
    )


@pytest.mark.parametrize(("method", "fields"), [("passive", {}), ("posterior_rl", FEW_UPDATES)])
def test_other_methods_learn_too(tmp_path, method, fields):
    """Without a posterior, and from the posterior between labels."""
    with live(tmp_path, method, **fields) as chat:
        before = leaves(chat.run.state.policy.params)
        for i in range(8):
            chat.choose(chat.client(), i)
        chat.wait(lambda: chat.engine.version == 2)
        assert not equal(chat.run.state.policy.params, before)


def test_configs_that_cannot_be_served():
    from configs import chat, quickstart
    from sea_jax.errors import InputError

    with pytest.raises(InputError) as caught:
        server.require_servable(quickstart.get_config())
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "config.oracle.kind='task'", "config.methods=('passive', 'sea', 'posterior_rl')"
    ]  # fmt: skip
    config = chat.get_config()
    assert server.require_servable(config) == "ee_ts"
    config.train.ask_ahead = 1
    with pytest.raises(InputError, match=r"config\.train\.ask_ahead=1: valid with serve is 0"):
        server.require_servable(config)
    for method in ("apl", "iterative", "offline", "perfect_rl"):
        config = chat.get_config()
        config.methods = (method,)
        with pytest.raises(InputError, match=method):
            server.require_servable(config)
