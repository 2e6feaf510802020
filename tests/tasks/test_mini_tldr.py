"""mini_tldr: its data, its tokens, and the reward family."""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sea_jax.tasks import mini_tldr
from sea_jax.tasks import mini_tldr_grammar as grammar

ROOT = pathlib.Path(__file__).resolve().parents[2]
POST = (
    "post: my boss broke my bike at work last night. my aunt also has a lamp but that is another "
    "story. i feel mad about it. not sure if i should report it. tl;dr:"
)
CLEAN = " so my boss smashed my bike on the job overnight, feeling angry, should i call the police?"


def basis(response, prompt=POST):
    """The non-zero entries of the basis, by name."""
    row = mini_tldr.reward_basis(prompt, response)
    return {name: float(v) for name, v in zip(mini_tldr.BASIS_NAMES, row, strict=True) if v}


# --- data -------------------------------------------------------------------------------------


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_the_data_and_the_rewards_are_what_they_always_were(task):
    """To the byte: published figures and cached parts stand on them."""
    splits = ("train", "tuning", "heldout")
    texts = [text for side in (task.prompts, task.references) for split in splits for text in side[split]]
    found = sha256("\n".join([*texts, *task.demonstrations]).encode())
    assert found == "c7bf9f16e7bad9a5533edf01fa8fd15cf08fad943db6ea27ab2ac75fcdc27fb0"
    tokenizer = sha256(task.tokenizer.to_str().encode())
    assert tokenizer == "06408ca020eccdad934a1f0d31a9c3f6e712ad3c8254ec0185e85d037dda024c"

    prompts, responses = task.prompts["train"][:500], task.demonstrations[:500]
    rows = mini_tldr.reward_basis_batch(prompts, responses)
    assert sha256(rows.tobytes()) == "821a2e62749fe0b476b29b592c9d84071915178035014c934be00d27c6e0ba04"
    draws = np.stack([mini_tldr.draw_reward(seed) for seed in range(20)])
    assert sha256(draws.tobytes()) == "39d910b55135ea2332b97c9f72abb7b9e6365c07ec1874ff9674c72486afca38"
    rewards = np.stack([mini_tldr.reward_fn(seed)(prompts, responses) for seed in range(3)])
    np.testing.assert_array_equal(rewards, (rows * draws[:3, None]).sum(-1))
    np.testing.assert_allclose(rewards[:, 0], [2.6240630, 6.0221400, 2.0429909], rtol=1e-6)


def test_splits_have_their_sizes_and_share_no_prompt(task):
    sizes = {split: len(texts) for split, texts in task.prompts.items()}
    assert sizes == {"train": 20_000, "tuning": 500, "heldout": 1_000}
    assert len(set().union(*task.prompts.values())) == 21_500
    assert {split: len(texts) for split, texts in task.references.items()} == sizes
    assert len(task.demonstrations) == 20_000


def test_token_ranges(task):
    def lengths(texts):
        return np.array([len(e.ids) for e in task.tokenizer.encode_batch(list(texts))])

    for split in task.prompts:
        prompts, references = lengths(task.prompts[split]), lengths(task.references[split])
        assert prompts.min() >= 40 and prompts.max() <= 64 == task.prompt_length
        assert references.min() >= 8 and references.max() <= 24
        assert all(prompt.endswith(" tl;dr:") for prompt in task.prompts[split])
    assert lengths(task.demonstrations).max() <= 25 == task.response_length - 1


def test_vocabulary(task):
    assert task.tokenizer.get_vocab_size() == 1024
    assert (task.pad_id, task.eos_id) == (0, 1)
    assert task.tokenizer.id_to_token(0) == "<|pad|>"
    assert task.tokenizer.id_to_token(1) == "<|endoftext|>"
    words = sorted(grammar.V1.summary_words)
    assert [w for w in words if len(task.tokenizer.encode(" " + w).ids) > 1] == []


def test_concatenated_tokens_are_those_of_the_concatenated_text(task):
    prompt, response = task.prompts["tuning"][0], task.references["tuning"][0]
    apart = task.tokenizer.encode(prompt).ids + task.tokenizer.encode(response).ids
    assert task.tokenizer.encode(prompt + response).ids == apart


def test_synonyms_are_uniform_in_references_and_habitual_in_demonstrations(task):
    for texts, sorted_shares in (
        (task.references["train"], (1 / 3,) * 3),
        (task.demonstrations, grammar.V1.habit),
    ):
        rows = mini_tldr.reward_basis_batch(task.prompts["train"], texts)
        groups = rows[:, :126].sum(0).reshape(42, 3)
        shares = -np.sort(-groups / groups.sum(1, keepdims=True), axis=1)
        np.testing.assert_allclose(shares.mean(0), sorted_shares, atol=0.015)


def test_the_same_in_another_process_under_another_hash_seed(task):
    def digest(t):
        texts = [*t.prompts["train"], *t.references["heldout"], *t.demonstrations]
        return hashlib.sha256("\n".join([*texts, t.tokenizer.to_str()]).encode()).hexdigest()

    code = (
        "import hashlib; from sea_jax.tasks import mini_tldr; t = mini_tldr.load();"
        "x = [*t.prompts['train'], *t.references['heldout'], *t.demonstrations];"
        "b = '\\n'.join([*x, t.tokenizer.to_str()]).encode();"
        "print(hashlib.sha256(b).hexdigest(), hashlib.sha256(mini_tldr.draw_reward(3)).hexdigest())"
    )
    env = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    reward = hashlib.sha256(mini_tldr.draw_reward(3).tobytes()).hexdigest()
    assert out.stdout.split() == [digest(task), reward]


def test_cache_is_read_and_a_stale_one_is_not(task, cache_dir, monkeypatch):
    assert (cache_dir / "mini_tldr.json").exists()

    def fail(*_):
        raise AssertionError("built again")

    monkeypatch.setattr(mini_tldr.MiniTldr, "_build_data", fail)
    again = mini_tldr.load(cache_dir)
    assert again.prompts == task.prompts and again.references == task.references
    assert again.demonstrations == task.demonstrations
    assert again.tokenizer.to_str() == task.tokenizer.to_str()
    monkeypatch.setattr(mini_tldr, "_fingerprint", lambda: "another version")
    with pytest.raises(AssertionError, match="built again"):
        mini_tldr.load(cache_dir)


@pytest.mark.parametrize("content", [b"", b'{"fingerprint": ', b"[]", b"{}"])
def test_a_spoilt_cache_is_built_again(tmp_path, content):
    (tmp_path / "mini_tldr.json").write_bytes(content)
    assert mini_tldr._read_cache(tmp_path / "mini_tldr.json") is None


# --- text and tokens --------------------------------------------------------------------------


def test_round_trip(task):
    posts = task.prompts["heldout"]
    tokens, mask = task.encode_prompts(posts)
    assert tokens.shape == mask.shape == (1000, 64)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    assert task.decode(tokens, mask) == list(posts)
    for texts in (task.references["heldout"], task.demonstrations[:1000]):
        tokens, mask = task.encode_responses(texts)
        assert tokens.shape == (1000, 26) and tokens.dtype == np.int32
        assert task.decode(tokens, mask) == list(texts)


def test_padding_sides_and_eos(task):
    tokens, mask = task.encode_prompts([POST])
    count = mask.sum()
    assert mask[0, -count:].all() and not mask[0, :-count].any()
    assert (tokens[0, :-count] == task.pad_id).all()
    tokens, mask = task.encode_responses([" so my boss", " so"])
    assert mask.sum(1).tolist() == [4, 2]
    assert tokens[0, 3] == tokens[1, 1] == task.eos_id
    assert (tokens[~mask] == task.pad_id).all()


def test_decode_keeps_leading_axes_and_obeys_the_mask(task):
    tokens, mask = task.encode_responses([" so", " my boss", " my", " so"])
    mask[3, 0] = False  # what is left of an empty response: its EOS
    assert task.decode(tokens.reshape(2, 2, 26), mask.reshape(2, 2, 26)) == [
        [" so", " my boss"],
        [" my", ""],
    ]
    assert task.decode(tokens[1], mask[1]) == " my boss"
    assert task.decode(tokens[1], mask[1] & (np.arange(26) < 1)) == " my"
    assert task.decode(tokens[:0], mask[:0]) == []
    with pytest.raises(ValueError, match=r"mask: shape \(26,\)"):
        task.decode(tokens, mask[0])


def test_lengths_are_enforced_to_the_token(task):
    task.encode_responses([" my" * 25])
    with pytest.raises(ValueError, match=r"responses\[1\]: 27 tokens.*response_length=26"):
        task.encode_responses([" so", " my" * 26])
    task.encode_prompts([" my" * 64])
    with pytest.raises(ValueError, match=r"prompts\[0\]: 65 tokens.*prompt_length=64"):
        task.encode_prompts([" my" * 65])


def test_empty_texts_are_refused(task):
    with pytest.raises(ValueError, match=r"responses\[1\]: '' is empty"):
        task.encode_responses([" so", ""])
    with pytest.raises(ValueError, match=r"prompts\[0\]: '' is empty"):
        task.encode_prompts([""])


def test_any_text_survives_and_special_tokens_in_text_stay_text(task):
    for text in ("<|endoftext|>", "Zürich 7%\n", "<|pad|>"):
        tokens, mask = task.encode_responses([text])
        assert task.decode(tokens, mask) == [text]
        assert (tokens[mask] == task.eos_id).sum() == 1


# --- reward -----------------------------------------------------------------------------------

COVERED = {f"cover/{slot}": 1.0 for slot in grammar.SLOTS}


def test_basis_of_a_clean_summary_by_hand():
    assert basis(CLEAN) == COVERED | {
        "choice/opener/so": 1.0,
        "choice/verb/smashed": 1.0,
        "choice/place/on the job": 1.0,
        "choice/time/overnight": 1.0,
        "choice/feeling/angry": 1.0,
        "choice/ask/should i": 1.0,
        "choice/action/call the police": 1.0,
        "length/words": 17.0,  # so my boss smashed my bike on the job overnight (10) + 2 + 2 + 3
        "length/over_16": 1.0,
    }


def test_basis_of_wrong_facts_by_hand():
    # The aunt is a distractor, the ring nobody's; 'at school' and 'sad' are other concepts. A wrong
    # concept earns neither coverage nor its choice, though it is a synonym of some group.
    assert basis(" my aunt broke my ring at school, feeling sad.") == {
        "cover/verb": 1.0,
        "choice/verb/broke": 1.0,
        "wrong/entity": 2.0,
        "wrong/concept": 2.0,
        "length/words": 9.0,
    }


def test_basis_of_junk_by_hand():
    assert basis(" so boss boss, zzz boss boss") == {
        "choice/opener/so": 1.0,
        "cover/who": 1.0,
        "length/words": 6.0,
        "junk/unknown": 1.0,
        "junk/repeated": 3.0,
    }
    assert basis(" my my,, Boss") == {
        "length/words": 3.0,
        "junk/unknown": 2.0,
        "junk/repeated": 1.0,
    }
    twice = basis(" my boss broke my bike, feeling angry, feeling angry.")
    assert twice["junk/repeated"] == 1.0


def test_counts_are_capped():
    everyone = basis(" " + " ".join(grammar.V1.words.persons))
    assert everyone["wrong/entity"] == 3.0
    verbs = basis(" " + " ".join(c[0] for c in grammar.V1.words.concepts["verb"]))
    assert verbs["wrong/concept"] == 3.0 and verbs["cover/verb"] == 1.0
    long = basis(" zzz qqq" * 20)
    assert long["junk/unknown"] == 5.0 and "junk/repeated" not in long
    assert (long["length/words"], long["length/over_16"], long["length/over_20"]) == (40, 24, 20)


def test_phrases_count_whole_and_unbroken_by_punctuation():
    assert "choice/time/last night" in basis(" last night")
    assert "choice/time/last night" not in basis(" last. night")
    # 'late at night' is one phrase; the words 'at' and 'night' name nothing by themselves.
    assert set(basis(" late at night")) == {
        "choice/time/late at night", "cover/time", "length/words"}  # fmt: skip


@pytest.mark.parametrize(
    "response",
    ["", " ", "?", "???,,,", "\n\t  \n", "\x00\x01", "�" * 30, "my" * 5000, "in in in", " at the",
     "<|endoftext|>", "日本語 ünï", "is it ok", POST, "{who} \\ [a-z]+ (.*)", "a" * 100_000],
)  # fmt: skip
def test_junk_is_measured_and_never_pays(response):
    row = mini_tldr.reward_basis(POST, response)
    assert row.shape == (mini_tldr.NUM_BASIS,) and row.dtype == np.float32
    assert np.isfinite(row).all() and (row >= 0).all()
    if response != POST:
        assert row @ mini_tldr.draw_reward(0) <= 0.0


def test_empty_response_is_all_zeros():
    assert basis("") == {}


def test_white_space_and_punctuation_are_not_free():
    assert basis(CLEAN + "\n\n")["junk/unknown"] == 1.0
    assert basis(CLEAN + "??")["junk/unknown"] == 2.0


def test_a_foreign_prompt_is_an_error():
    with pytest.raises(ValueError, match="prompt: 'hello' names no who"):
        mini_tldr.reward_basis("hello", CLEAN)


def test_batch_equals_single_calls(task):
    prompts, responses = task.prompts["train"][:50], task.demonstrations[:50]
    rows = mini_tldr.reward_basis_batch(prompts, responses)
    assert rows.shape == (50, len(mini_tldr.BASIS_NAMES))
    singles = [mini_tldr.reward_basis(p, r) for p, r in zip(prompts, responses, strict=True)]
    np.testing.assert_array_equal(rows, np.stack(singles))
    with pytest.raises(ValueError, match="responses: 49 given"):
        mini_tldr.reward_basis_batch(prompts, responses[:49])


def test_references_are_clean_and_demonstrations_worse(task):
    prompts = task.prompts["train"]
    names = list(mini_tldr.BASIS_NAMES)
    cover = [names.index(f"cover/{slot}") for slot in grammar.SLOTS]
    faults = [i for i, name in enumerate(names) if name.startswith(("wrong", "junk"))]
    clean = mini_tldr.reward_basis_batch(prompts, task.references["train"])
    noisy = mini_tldr.reward_basis_batch(prompts, task.demonstrations)
    assert (clean[:, cover] == 1).all() and (clean[:, faults] == 0).all()
    assert 5.5 < noisy[:, cover].sum(1).mean() < 6.5
    assert (noisy[:, faults].mean(0) > 0).all()
    # On average over rewards: a single one may happen to like the demonstrators' habits.
    weights = np.stack([mini_tldr.draw_reward(seed) for seed in range(40)]).mean(0)
    assert (clean @ weights).mean() > (noisy @ weights).mean() + 0.5


def test_drawn_rewards_are_as_documented():
    draws = np.stack([mini_tldr.draw_reward(seed) for seed in range(200)])
    assert draws.dtype == np.float32 and draws.shape == (200, len(mini_tldr.BASIS_NAMES))
    groups = draws[:, :126].reshape(200, 42, 3)
    np.testing.assert_allclose(np.sort(groups), np.broadcast_to([-0.6, 0, 0.6], groups.shape))
    # Every synonym is the best of its group in a third of the draws; 5 σ of 200 draws is 0.17.
    np.testing.assert_allclose((groups > 0).mean(0), 1 / 3, atol=0.17)
    ranges = [(0.3, 1.0)] * 7 + [(-2, -1)] * 2 + [(-0.06, -0.02), (-0.15, -0.05), (-0.3, -0.1)]
    for column, (low, high) in zip(draws[:, 126:138].T, ranges, strict=True):
        assert low <= column.min() < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < column.max() <= high
    assert (draws[:, -2:] == -0.5).all()
    assert mini_tldr.BASIS_NAMES[126] == "cover/who"


def test_reward_is_the_weighted_basis():
    weights = dict(zip(mini_tldr.BASIS_NAMES, mini_tldr.draw_reward(7), strict=True))
    expected = sum(weights[name] * value for name, value in basis(CLEAN).items())
    reward = mini_tldr.reward_fn(7)([POST], [CLEAN])
    assert reward.dtype == np.float32
    np.testing.assert_allclose(reward, [expected], rtol=1e-5)


def test_a_reward_is_the_same_in_any_company(task):
    """To the bit: a service batches as requests come, and its labels must not depend on that."""
    reward, prompts, responses = mini_tldr.reward_fn(7), task.prompts["tuning"], task.references["tuning"]
    together = reward(prompts, responses)
    for size in (1, 3, 7):
        parts = [reward(prompts[i : i + size], responses[i : i + size]) for i in range(0, len(prompts), size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
