"""Properties of the tasks' tokenizers: every text can be encoded, and any token ids can be decoded."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import good_files
from sea_jax.errors import InputError
from sea_jax.tasks.protocol import Task, utf8

few = settings(derandomize=True, deadline=None, database=None, max_examples=60)
ANY = st.text(st.characters(exclude_categories=()), max_size=40)  # halves of characters and controls too
IDS = st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 400), max_size=30)


@pytest.fixture(scope="module")
def real():
    """A task of real text, whose tokenizer is byte-level as those of Pythia and Llama."""
    return Task("real", good_files.tokenizer(), 0, 0, 512, 256, {}, {}, prefix_ids=(1,))


@pytest.fixture(params=["task", "task_v2", "real"])
def any_task(request):
    return request.getfixturevalue(request.param)


def test_every_text_can_be_encoded_and_decoded(any_task):
    special = {any_task.pad_id, any_task.eos_id}

    @few
    @given(text=ANY)
    @example("\ud800")
    @example("<|endoftext|><|pad|>")
    @example("नमस्ते \u200f مرحبا 犬 👩\u200d👩\u200d👧 \0")
    def check(text):
        [ids] = any_task.prompt_ids([text])
        assert not special & set(ids[len(any_task.prefix_ids) :])
        tokens = np.array(ids, np.int32)
        mask = np.arange(len(ids)) >= len(any_task.prefix_ids)
        assert any_task.decode(tokens, mask) == utf8(text)
        fits = any_task.responses_that_fit([text])[0]
        try:
            tokens, mask = any_task.encode_responses([text])
        except InputError as error:
            assert not fits and "responses[0]" in str(error)
        else:
            assert fits and any_task.decode(tokens, mask) == [utf8(text)]

    check()


def test_any_token_ids_can_be_decoded(any_task):
    @few
    @given(ids=IDS)
    def check(ids):
        tokens = np.array(ids, np.int32)
        text = any_task.decode(tokens, np.ones(len(ids), bool))
        assert isinstance(text, str)
        known = [i for i in ids if 0 <= i < any_task.tokenizer.get_vocab_size()]
        assert text == any_task.decode(np.array(known, np.int32), np.ones(len(known), bool))
        any_task.prompt_ids([text])

    check()
