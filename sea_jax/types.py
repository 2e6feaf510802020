"""The dataflow of one step, as named tuples.

Axis legend (the paper's letters where it has them):

    B  prompts in a batch              M  responses per prompt (|S_t|)
    K  ensemble members                L  tokens of a prompt, left-padded
    T  tokens of a response, EOS in    E  width of a feature vector
    C  capacity of the experience      V  vocabulary
    W  width of a model                N  layers

Prompts and responses are separate arrays because M responses share one prompt: its keys and values are
computed once wherever the responses are sampled, scored or learned from.
"""

from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = Any  # a nested dict of arrays
Config = Any  # an ml_collections.ConfigDict; sea_jax/config holds its fields
BATCH_AXES = ("data", "fsdp")  # mesh axes that prompts are split along


class StepKeys(NamedTuple):
    """One key per kind of draw in a step: [] keys. See `state.step_keys`."""

    sample: Array  # S_t (line 4)
    select: Array  # the heads of the strategy (lines 5-7)
    route: Array  # γ (line 8)
    label: Array  # the head that labels a synthetic duel (line 8)
    ensemble: Array  # batches from D_t (line 9)
    evaluate: Array  # best-of-N samples


class SampleKeys(NamedTuple):
    """One key per kind of sample in a step: [] keys. See `state.sample_keys`."""

    responses: Array  # S_t
    extra: Array  # the responses of π_ref that a method's loss term reads
    pool: Array  # the samples by which a method chooses its prompts


class PromptBatch(NamedTuple):
    """Prompts x_t (Alg. 2, line 3)."""

    tokens: Array  # [B, L] int32, left-padded
    mask: Array  # [B, L] bool, False on padding


class Candidates(NamedTuple):
    """The proposal sets S_t (Alg. 2, line 4)."""

    tokens: Array  # [B, M, T] int32, right-padded
    mask: Array  # [B, M, T] bool, True up to and including the EOS
    features: Array | None  # [B, M, E] f32; None for a method without an ensemble


class Duel(NamedTuple):
    """The two responses of each proposal set that meet, and who judges them (lines 5-8)."""

    first: Array  # [B] int32, y_t
    second: Array  # [B] int32, y'_t
    query_oracle: Array  # [B] bool, True: the oracle labels the duel; False: a sampled head does
    void: Array  # [B] bool, True: the duel teaches nothing (equal responses, no answer, no budget left)


class PreferenceBatch(NamedTuple):
    """B_t: labelled duels. Axis 1 is (y+, y-)."""

    prompts: Array  # [B, L] int32
    prompt_mask: Array  # [B, L] bool
    tokens: Array  # [B, 2, T] int32
    mask: Array  # [B, 2, T] bool
    features: Array | None  # [B, 2, E] f32; None for a method without an ensemble
    from_oracle: Array  # [B] bool
    weight: Array  # [B] f32, 0 for a void duel
    # Further responses to each prompt that a method's loss term reads. None is no leaf of the tree, so the
    # programs of other methods do not contain them.
    extra_tokens: Array | None = None  # [B, X, T] int32
    extra_mask: Array | None = None  # [B, X, T] bool


class Experience(NamedTuple):
    """D_t: oracle-labelled pairs only, as a ring buffer of fixed shape on the device."""

    features: Array  # [C, 2, E] f32
    weight: Array  # [C] f32
    cursor: Array  # [] int32, the next slot to write
    size: Array  # [] int32, filled slots, at most C


class EnsembleState(NamedTuple):
    """The posterior: K heads, their initial parameters, and their optimizer."""

    params: Params  # leaves [K, ...]
    anchor: Params  # φ⁰, leaves [K, ...]
    opt_state: Any


class PolicyState(NamedTuple):
    """The policy π_θ and its optimizer."""

    params: Params
    opt_state: Any


class SeaState(NamedTuple):
    """Everything that a step changes."""

    policy: PolicyState
    ensemble: EnsembleState | None  # None for a method without an ensemble
    experience: Experience | None  # None for a method without an ensemble
    key: Array  # [] key; step t uses fold_in(key, t)
    step: Array  # [] int32, updates done
    num_queries: Array  # [] int32, oracle labels bought
