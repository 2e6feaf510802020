"""mini_tldr_v2: its data, and its two reward families, of which one is not linear."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from sea_jax import tasks
from sea_jax.tasks import mini_tldr
from sea_jax.tasks import mini_tldr_grammar as grammar

LINEAR, REGISTER = mini_tldr.REWARDS_V2, mini_tldr.REGISTER_REWARDS_V2
BASIS, C = LINEAR.basis, REGISTER.strength
POST = (
    "post: my aunt was mad and would never tell any of us the reason. my boss broke my bike at church last "
    "year. my cousin thinks that everyone should quit once in a while. there is also a lamp on deck for us "
    "all. i feel lonely about it. part of me wants to take notes. tl;dr:"
)
CLEAN = " so my boss smashed my bike at mass a year ago, feeling isolated, should i write it down?"
CHOICES = ("opener/so", "verb/smashed", "place/at mass", "time/a year ago", "feeling/isolated",
           "ask/should i", "action/write it down")  # fmt: skip


def basis(response):
    """The non-zero entries of the basis, by name."""
    return {name: float(v) for name, v in zip(BASIS.names, BASIS([POST], [response])[0], strict=True) if v}


def registers(seed):
    """The register of each choice, by name."""
    row = REGISTER.draw(seed)[1, : BASIS.cover] / np.sqrt(C)
    return dict(zip(BASIS.names, np.rint(row).tolist(), strict=False))


# --- data -------------------------------------------------------------------------------------


def test_splits_have_their_sizes_and_share_no_prompt(task_v2):
    sizes = {split: len(texts) for split, texts in task_v2.prompts.items()}
    assert sizes == {"train": 20_000, "tuning": 500, "heldout": 1_000}
    assert len(set().union(*task_v2.prompts.values())) == 21_500
    assert {split: len(texts) for split, texts in task_v2.references.items()} == sizes
    assert len(task_v2.demonstrations) == 20_000


def test_every_post_names_its_facts_and_has_a_length_in_range(task_v2):
    def lengths(texts):
        return np.array([len(e.ids) for e in task_v2.tokenizer.encode_batch(list(texts))])

    for split in task_v2.prompts:
        prompts, references = lengths(task_v2.prompts[split]), lengths(task_v2.references[split])
        assert prompts.min() >= 64 and prompts.max() <= 96 == task_v2.prompt_length
        assert references.min() >= 8 and references.max() <= 24
    assert lengths(task_v2.demonstrations).max() <= 25 == task_v2.response_length - 1
    words = sorted(grammar.V2.summary_words)
    assert [w for w in words if len(task_v2.tokenizer.encode(" " + w).ids) > 1] == []
    assert task_v2.tokenizer.get_vocab_size() == mini_tldr.V2.vocab_size


def test_references_are_clean_and_demonstrations_nearly(task_v2):
    prompts, names = task_v2.prompts["train"][:4000], list(BASIS.names)
    cover, wrong, junk = slice(BASIS.cover, BASIS.wrong), slice(BASIS.wrong, BASIS.brevity), BASIS.junk
    clean = BASIS(prompts, task_v2.references["train"][:4000])
    assert (clean[:, cover] == 1).all() and not clean[:, wrong].any() and not clean[:, junk:].any()
    assert len(names) == 3 * 82 + 14 and BASIS.cover == 3 * 82
    noisy = BASIS(prompts, task_v2.demonstrations[:4000])
    assert 6.6 < noisy[:, cover].sum(1).mean() < 6.9
    assert 0.02 < noisy[:, wrong].sum(1).mean() < 0.04


def test_demonstrators_have_weaker_and_other_habits(task_v2):
    rows = BASIS(task_v2.prompts["train"], task_v2.demonstrations)[:, : BASIS.cover].sum(0).reshape(-1, 3)
    shares = -np.sort(-rows / rows.sum(1, keepdims=True), axis=1)
    np.testing.assert_allclose(shares.mean(0), (0.60, 0.27, 0.13), atol=0.015)
    shared = {group: order for group, order in grammar.V1._habits.items() if group in grammar.V2._habits}
    same = np.mean([grammar.V2._habits[group] == order for group, order in shared.items()])
    assert len(shared) == 42 and same < 0.5  # of two draws of three, a sixth are the same


def test_the_same_in_another_process_under_another_hash_seed(monkeypatch):
    small = {"train": 300, "tuning": 20, "heldout": 20}
    code = f"""if True:
        import hashlib
        from sea_jax.tasks import mini_tldr
        mini_tldr.NUM_PROMPTS = {small}
        t = mini_tldr.V2.load()
        texts = [*t.prompts['train'], *t.references['heldout'], *t.demonstrations, t.tokenizer.to_str()]
        digest = hashlib.sha256('\\n'.join(texts).encode())
        digest.update(mini_tldr.REGISTER_REWARDS_V2.draw(3).tobytes())
        print(digest.hexdigest())
    """
    env = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    monkeypatch.setattr(mini_tldr, "NUM_PROMPTS", small)
    t = mini_tldr.V2.load()
    texts = [*t.prompts["train"], *t.references["heldout"], *t.demonstrations, t.tokenizer.to_str()]
    digest = hashlib.sha256("\n".join(texts).encode())
    digest.update(REGISTER.draw(3).tobytes())
    assert out.stdout.strip() == digest.hexdigest()


def test_tasks_share_a_cache_folder(task, task_v2, cache_dir, monkeypatch):
    monkeypatch.delattr(mini_tldr.MiniTldr, "_build")
    assert {path.name for path in cache_dir.iterdir()} == {"mini_tldr.json", "mini_tldr_v2.json"}
    for name, made in (("mini_tldr", task), ("mini_tldr_v2", task_v2), ("mini_tldr_v2_register", task_v2)):
        read = tasks.TASKS[name].load(None, cache_dir)
        assert read.name == name and read.fingerprint == made.fingerprint
        assert (read.prompts, read.references) == (made.prompts, made.references)


# --- rewards ----------------------------------------------------------------------------------


def test_basis_of_a_clean_summary_by_hand():
    # so my boss smashed my bike (6) at mass (8) a year ago (11) feeling isolated (13) should i write it down
    expected = {f"choice/{choice}": 1.0 for choice in CHOICES}
    expected |= {f"cover/{slot}": 1.0 for slot in grammar.SLOTS}
    assert basis(CLEAN) == expected | {"length/words": 18.0, "length/over_16": 2.0}


def test_others_feelings_and_plans_are_wrong():
    assert basis(" my aunt broke my lamp at home, feeling mad, do i quit?") == {
        "cover/verb": 1.0,
        "choice/verb/broke": 1.0,
        "choice/ask/do i": 1.0,
        "wrong/entity": 2.0,
        "wrong/concept": 3.0,
        "length/words": 12.0,
    }


def test_rewards_by_hand():
    weights = dict(zip(BASIS.names, LINEAR.draw(4).tolist(), strict=True))
    choice = sum(weights[f"choice/{name}"] for name in CHOICES)
    rest = sum(weights[f"cover/{slot}"] for slot in grammar.SLOTS)
    rest += 18 * weights["length/words"] + 2 * weights["length/over_16"]
    reward = LINEAR.reward_fn(4)([POST], [CLEAN])
    assert reward.dtype == np.float32
    np.testing.assert_allclose(reward, [choice + rest], rtol=1e-5)

    total = sum(registers(4)[f"choice/{name}"] for name in CHOICES)
    reward = REGISTER.reward_fn(4)([POST], [CLEAN])
    assert reward.dtype == np.float32 and total == 3
    np.testing.assert_allclose(reward, [choice / 2 + rest + C * total**2 / 7], rtol=1e-5)
    # Without a choice there is no register.
    junk = REGISTER.reward_fn(4)([POST] * 2, ["", " zzz"])
    np.testing.assert_allclose(junk, [0, weights["length/words"] - 0.5], rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_no_additive_reward_has_the_registers_interaction(seed):
    """Opener and feeling, each of either register: the two that agree gain 2 c, the two that do not nothing."""
    table = registers(seed)
    words = {
        (group, sign): name.split("/")[2]
        for group, names in (
            ("opener", [f"choice/opener/{p}" for p in grammar.GLOBALS["opener"]]),
            ("feeling", [f"choice/feeling/{p}" for p in grammar.V2.synonyms["feeling"]["lonely"]]),
        )
        for name in names if (sign := table[name])
    }  # fmt: skip
    corners = [(a, b) for a in (1, -1) for b in (1, -1)]
    responses = [f" {words['opener', a]}, feeling {words['feeling', b]}." for a, b in corners]
    signs = np.array([a * b for a, b in corners])
    interaction = REGISTER.reward_fn(seed)([POST] * 4, responses) @ signs
    np.testing.assert_allclose(interaction, 4 * C, rtol=1e-5)
    assert abs(LINEAR.reward_fn(seed)([POST] * 4, responses) @ signs) < 1e-5


def test_drawn_rewards_are_as_documented():
    linear = np.stack([LINEAR.draw(seed) for seed in range(200)])
    both = np.stack([REGISTER.draw(seed) for seed in range(200)])
    assert both.dtype == np.float32 and both.shape == (200, 2, len(BASIS.names))
    ends = BASIS.cover
    np.testing.assert_allclose(both[:, 0, :ends], linear[:, :ends] / 2)
    np.testing.assert_array_equal(both[:, 0, ends:], linear[:, ends:])
    assert not both[:, 1, ends:].any()
    for draws, size in ((linear, 0.6), (both[:, 1], np.sqrt(C))):
        groups = draws[:, :ends].reshape(200, 82, 3)
        np.testing.assert_allclose(
            np.sort(groups), np.broadcast_to([-size, 0, size], groups.shape), rtol=1e-6
        )
        np.testing.assert_allclose((groups > 0).mean(0), 1 / 3, atol=0.17)  # 5 σ of 200 draws
    correlation = np.corrcoef(linear[:, :ends].ravel(), both[:, 1, :ends].ravel())[0, 1]
    assert abs(correlation) < 0.03
    old = mini_tldr.draw_reward(0)
    assert not np.array_equal(old[-14:], linear[0, -14:])  # the streams differ


def test_both_parts_of_the_register_rewards_matter(task_v2):
    rows = BASIS(task_v2.prompts["train"][:4000], task_v2.demonstrations[:4000])
    choices, ratios = rows[:, : BASIS.cover], []
    for seed in range(200, 210):
        weights, register = REGISTER.draw(seed)[:, : BASIS.cover]
        quadratic = (choices @ register) ** 2 / np.maximum(choices.sum(1), 1)
        ratios.append(quadratic.std() / (choices @ weights).std())
    assert 0.9 < np.mean(ratios) < 1.1


@pytest.mark.parametrize("rewards", [LINEAR, REGISTER], ids=["linear", "register"])
def test_a_reward_is_the_same_in_any_company(task_v2, rewards):
    reward, prompts, responses = rewards.reward_fn(7), task_v2.prompts["tuning"], task_v2.demonstrations[:500]
    together = reward(prompts, responses)
    assert together.shape == (500,) and together.dtype == np.float32
    for size in (1, 3, 7):
        parts = [reward(prompts[i : i + size], responses[i : i + size]) for i in range(0, 500, size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    with pytest.raises(ValueError, match="'hello' names no who, must be a post of mini_tldr_v2"):
        reward(["hello"], [CLEAN])
