"""Conversations as prompt texts: whatever the turns hold, they are read back, and templates get them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sea_jax.tasks.conversation import ROLES, Message, to_messages, to_text

CONTENTS = st.text(max_size=12) | st.lists(
    st.sampled_from(["[user]", "\\[user]", "\\\\[assistant]", "[system]", "", "text", "[user] ", "\r"]),
    max_size=5,
).map("\n".join)
MESSAGES = st.builds(Message, st.sampled_from(ROLES), CONTENTS)


@given(st.lists(MESSAGES, min_size=1, max_size=5))
def test_what_is_written_is_read_back(messages):
    assert to_messages(to_text(messages)) == messages


def test_one_turn_is_its_content():
    assert to_text([Message("user", "What is JAX?\n[user]")]) == "What is JAX?\n[user]"


def test_several_turns_can_be_read_by_people():
    turns = [
        Message("user", "What is JAX?"),
        Message("assistant", "[user]\nA library."),
        Message("user", "Of whom?"),
    ]
    assert to_text(turns) == ("[user]\nWhat is JAX?\n\n[assistant]\n\\[user]\nA library.\n\n[user]\nOf whom?")


@pytest.mark.parametrize(
    "text", ["[user]\na\n[assistant]\nb", "[user]", "[users]\na", "\\[user]\na\n\n[user]\nb"]
)
def test_a_text_that_only_looks_like_a_conversation_is_one_turn(text):
    assert to_messages(text) == [Message("user", text)]
