"""Replay of the labels: how many updates, on which duels."""

import jax
import numpy as np
from small_run import loop, small_run

from sea_jax.methods import replay

FIELDS = {"replay.updates_per_label": 0.5}


def test_updates_per_label_on_the_labels_bought(tmp_path, monkeypatch):
    run = small_run(tmp_path, "passive_replay", **FIELDS)
    seen, update = [], replay._update
    note = lambda *args: seen.append(jax.device_get(args[3])) or update(*args)  # noqa: E731
    monkeypatch.setattr(replay, "_update", note)
    rows, _ = loop(run)
    assert [row["improve/updates"] for row in rows if "improve/updates" in row] == [2, 2, 2, 2]
    assert len(seen) == 8 and int(run.state.num_queries) == 16  # replayed labels are not counted again
    bought = zip(run.memory["tokens"], run.memory["prompts"], strict=True)
    known = {(*pair.ravel(), *prompt) for pair, prompt in bought}
    for batch in seen:
        assert (batch.weight > 0).all() and not batch.from_oracle.any()
        for pair, prompt in zip(batch.tokens, batch.prompts, strict=True):
            assert (*pair.ravel(), *prompt) in known


def test_without_updates_it_is_passive(tmp_path):
    policies = []
    for method, fields in (("passive", {}), ("passive_replay", {"replay.updates_per_label": 0.0})):
        run = small_run(tmp_path / method, method, **fields)
        loop(run)
        policies.append(jax.device_get(run.state.policy.params))
    jax.tree.map(np.testing.assert_array_equal, *policies)
