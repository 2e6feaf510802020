"""The dataflow of one step, as named tuples.

Axis legend (the paper's letters where it has them):

    B  prompts in a batch              M  responses per prompt (|S_t|)
    K  ensemble members                L  tokens of a prompt, left-padded
    T  tokens of a response, EOS in    E  width of a feature vector
    C  capacity of the experience      V  vocabulary
    W  width of a model                N  layers

Prompts and responses are kept apart because M responses share one prompt: its keys and values are
computed once wherever the responses are sampled, scored or learned from.
"""

from typing import Any, NamedTuple

import jax

Array = jax.Array
BATCH_AXES = ("data", "fsdp")  # mesh axes that prompts are split along
Params = Any  # a nested dict of arrays
Config = Any  # an ml_collections.ConfigDict; sea_jax/config holds its fields


class StepKeys(NamedTuple):
    """The draws of one step, each with a key of its own: [] keys. See `state.step_keys`."""

    sample: Array  # S_t (line 4)
    select: Array  # heads and γ (lines 5-8)
    label: Array  # the head that labels a synthetic duel (line 8)
    ensemble: Array  # batches from D_t (line 9)
    evaluate: Array  # best-of-N samples


class SampleKeys(NamedTuple):
    """What is sampled in a step, each with a key of its own: [] keys. See `state.sample_keys`."""

    responses: Array  # S_t
    y_ref: Array  # π_ref's responses (XPO)
    pool: Array  # those that prompts are chosen by (APL)


class PromptBatch(NamedTuple):
    """Prompts x_t (Alg. 2, line 3)."""

    tokens: Array  # [B, L] int32, left-padded
    mask: Array  # [B, L] bool, False on padding
    row: Array  # [B] int32, index of the prompt in its split


class Candidates(NamedTuple):
    """The proposal sets S_t (Alg. 2, line 4)."""

    tokens: Array  # [B, M, T] int32, right-padded
    mask: Array  # [B, M, T] bool, True up to the EOS and on it
    logprobs: Array  # [B, M, T] f32 nats, at the sampling temperature; 0 on padding
    features: Array  # [B, M, E] f32


class Duel(NamedTuple):
    """Which two responses of each proposal set meet, and who judges (lines 5-8)."""

    first: Array  # [B] int32, y_t
    second: Array  # [B] int32, y'_t
    query_oracle: Array  # [B] bool, True: the oracle labels; False: a sampled head does
    clash: Array  # [B] bool, True: equal responses, no answer, or the budget is spent; nothing is learned


class PreferenceBatch(NamedTuple):
    """B_t: labelled duels. Axis 1 is (y+, y-)."""

    prompts: Array  # [B, L] int32
    prompt_mask: Array  # [B, L] bool
    tokens: Array  # [B, 2, T] int32
    mask: Array  # [B, 2, T] bool
    features: Array  # [B, 2, E] f32
    from_oracle: Array  # [B] bool
    weight: Array  # [B] f32, 0 for a duel that teaches nothing
    # XPO alone has y_ref ~ π_ref (Eq. 19); None is no leaf, so other methods' programs know nothing of it.
    y_ref_tokens: Array | None = None  # [B, 1, T] int32
    y_ref_mask: Array | None = None  # [B, 1, T] bool


class Experience(NamedTuple):
    """D_t: oracle-labelled pairs only, as a ring buffer of fixed shape on the device."""

    features: Array  # [C, 2, E] f32
    weight: Array  # [C] f32
    cursor: Array  # [] int32, the next slot to write
    size: Array  # [] int32, filled slots, at most C


class EnsembleState(NamedTuple):
    """The posterior: K heads, where each began, and their optimizer."""

    params: Params  # leaves [K, ...]
    anchor: Params  # φ⁰, leaves [K, ...]
    opt_state: Any


class PolicyState(NamedTuple):
    """The policy π_θ and its optimizer."""

    params: Params
    opt_state: Any


class SeaState(NamedTuple):
    """All that a step changes."""

    policy: PolicyState
    ensemble: EnsembleState
    experience: Experience
    key: Array  # [] key; step t uses fold_in(key, t)
    step: Array  # [] int32, updates done
    num_queries: Array  # [] int32, oracle labels bought
