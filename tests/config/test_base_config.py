"""The base config: its values, and that every field says what it means and what is valid."""

import pytest

from configs import quickstart, sample_efficiency, tldr, ultrafeedback
from sea_jax.config.checks import flat
from sea_jax.config.fields import declared
from sea_jax.config.task import TextTask
from sea_jax.experiment import validate
from sea_jax.experiment.base_config import base_config, sections_of
from sea_jax.tasks.text import DEFAULTS as TEXT

BASE = {
    "apl.entropy_samples": 8,
    "apl.num_responses": 8,
    "apl.pool_factor": 8,
    "backbone.batch_size": 64,
    "backbone.decoder_rate": 0.03,
    "backbone.gate_hidden": 128,
    "backbone.kind": "ranker",
    "backbone.family": "",
    "backbone.layer": -1,
    "backbone.learning_rate": 0.01,
    "backbone.mean_scale": 0.3,
    "backbone.num_prompts": 6000,
    "backbone.num_responses": 4,
    "backbone.num_rewards": 256,
    "backbone.pool": "both",
    "backbone.pooled_width": 192,
    "backbone.read_eos": False,
    "backbone.scaling": "pca",
    "backbone.seed": 0,
    "backbone.steps": 350,
    "backbone.temperature": 1.0,
    "backbone.width": 128,
    "cache_dir": "",
    "checkpoint.every_s": 60.0,
    "checkpoint.keep": 2,
    "checkpoint.grace_s": 20.0,
    "checkpoint.best": True,
    "encoder.batch_size": 64,
    "encoder.candidate_length": 412,
    "encoder.dtype": "float32",
    "encoder.folder": "",
    "encoder.leave_out": ("head_layer.",),
    "encoder.markers": ("<|source|>", "<|candidate1|>"),
    "encoder.source_length": 1224,
    "ensemble.batch_size": 128,
    "ensemble.capacity": 8192,
    "ensemble.hidden": (128, 128),
    "ensemble.kind": "auto",
    "ensemble.learning_rate": 0.001,
    "ensemble.newton_steps": 8,
    "ensemble.num_members": 20,
    "ensemble.num_draws": 256,
    "ensemble.prior": "pretrained",
    "ensemble.prior_scale": 1.0,
    "ensemble.regularization": 0.5,
    "ensemble.scale_by_data": True,
    "ensemble.sharpness": 1.0,
    "ensemble.steps": 5,
    "eval.batch_size": 250,
    "eval.best_of": 1,
    "eval.every_queries": 128,
    "eval.gain_levels": (),
    "eval.kl_samples": 0,
    "eval.levels": (0.8, 0.9, 0.95),
    "eval.num_pairs": 500,
    "eval.num_prompts": 500,
    "eval.num_samples": 4,
    "eval.online": "auto",
    "eval.reference_levels": (0.8, 0.9, 0.95),
    "eval.regret": False,
    "eval.reward_levels": (5.5, 6.0, 6.5, 7.0),
    "eval.split": "heldout",
    "prior_heads.batch_size": 64,
    "selm.alpha": 0.001,
    "prior_heads.num_heads": 40,
    "prior_heads.steps": 300,
    "iterative.labels_per_round": 128,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
    "methods": ("passive", "sea"),
    "num_seeds": 2,
    "oracle.attempts": 3,
    "oracle.base_url": "",
    "oracle.batch_size": 64,
    "oracle.chat": "auto",
    "oracle.dtype": "float32",
    "oracle.flip_probability": 0.0,
    "oracle.folder": "",
    "oracle.function": "",
    "oracle.in_flight": 8,
    "oracle.kind": "task",
    "oracle.labels": "threshold",
    "oracle.model": "",
    "oracle.patience_s": 300.0,
    "oracle.price_in": 0.0,
    "oracle.price_out": 0.0,
    "oracle.request_size": 16,
    "oracle.requests_per_minute": 0.0,
    "oracle.timeout_s": 30.0,
    "oracle.url": "http://127.0.0.1:8000",
    "oracle.both_orders": False,
    "oracle.max_calls": 0,
    "oracle.max_usd": 0.0,
    "oracle.ties": "drop",
    "oracle.verdicts": 0,
    "train.ask_ahead": 0,
    "people.combine": "majority",
    "people.guideline": "",
    "people.host": "127.0.0.1",
    "people.lease_s": 300.0,
    "people.overlap": 0.0,
    "people.port": 8501,
    "people.requests_per_s": 20.0,
    "people.skips": 1,
    "people.undo_s": 3.0,
    "people.votes": 3,
    "policy.dtype": "float32",
    "policy.folder": "",
    "policy.mlp_width": 512,
    "policy.num_heads": 4,
    "policy.num_layers": 2,
    "policy.remat": "none",
    "policy.trained_layers": 0,
    "policy.width": 128,
    "progress": True,
    "ray.actor_cpus": 1.0,
    "ray.actor_gpus": 0.0,
    "ray.actors": 0,
    "ray.oracle_cpus": 1.0,
    "ray.oracle_gpus": 0.0,
    "ray.oracles": 0,
    "ray.retries": 3,
    "ray.timeout_s": 600.0,
    "rm.batch_size": 32,
    "rm.learning_rate": 0.001,
    "rm.length": 0,
    "rm.micro_batch": 0,
    "rm.num_pairs": 8000,
    "rm.seed": 0,
    "rm.steps": 500,
    "sampler.devices": 0,
    "sampler.kind": "jax",
    "sampler.kv_cache_gb": 1.0,
    "sampler.max_num_seqs": 256,
    "sampler.micro_batch": 0,
    "sampler.python": ".venv-vllm/bin/python",
    "sampler.restarts": 2,
    "sampler.start_timeout": 300.0,
    "sampler.timeout": 600.0,
    "sea.burn_in": 64,
    "sea.gamma": 0.7,
    "sea.gamma_mode": "count",
    "sea.num_responses": 20,
    "sea.passive_queries": 0,
    "sea.reference_share": 0.0,
    "sea.synthetic_pairs": "max_margin",
    "replay.updates_per_label": 1.5,
    "rloo.burst_labels": (32, 64),
    "rloo.burst_updates": (40, 80),
    "rloo.kl_half_labels": 64.0,
    "rloo.kl_weight": 0.4,
    "rloo.learning_rate": 0.0006,
    "rloo.lower_bound": 1.0,
    "rloo.max_grad_norm": 1.0,
    "rloo.max_kl": float("inf"),
    "rloo.max_surprise": float("inf"),
    "rloo.min_distinct": 0.0,
    "rloo.num_prompts": 16,
    "rloo.num_responses": 8,
    "rloo.pessimism": 0.0,
    "rloo.pool_choice": "i_optimal",
    "rloo.pool_factor": 8,
    "rloo.reward": "mean",
    "rloo.updates_per_label": 1.5,
    "seed": 0,
    "serve.answer_s": 300.0,
    "serve.at_once": 16,
    "serve.chunk": 8,
    "serve.control_share": 0.1,
    "serve.host": "127.0.0.1",
    "serve.least_std": 0.05,
    "serve.pairs": 16,
    "serve.port": 8502,
    "serve.requests_per_s": 10.0,
    "serve.share": 0.25,
    "serve.waiting": 256,
    "sft.batch_size": 32,
    "sft.learning_rate": 0.003,
    "sft.prompt_weight": 0.1,
    "sft.seed": 0,
    "sft.steps": 1000,
    "sft.token_chunk": 0,
    "task.name": "mini_tldr",
    "task.oracle_seed": 0,
    "train.batch_size": 4,
    "train.beta": 0.1,
    "train.dap": "dpo",
    "train.learning_rate": 0.00025,
    "train.margin_ratio": 0.3,
    "train.max_grad_norm": 1.0,
    "train.max_idle_steps": 500,
    "train.micro_batch": 0,
    "train.per_token": False,
    "train.query_budget": 1024,
    "train.schedule": "constant",
    "train.staleness": 0,
    "train.temperature": 0.7,
    "train.token_chunk": 0,
    "train.warmup_queries": 40,
    "watch.accuracy": 0.48,
    "watch.accuracy_labels": 128,
    "watch.after": 32,
    "watch.agreement": 0.01,
    "watch.distinct": 1.5,
    "watch.drift": 0.8,
    "watch.kl": 0.8,
    "watch.labels": 64,
    "watch.length": 2.0,
    "watch.steps": 8,
    "watch.stop": (),
    "xpo.alpha": 5e-06,
}

FIELDS = [field for section in sections_of(base_config()) for field in declared(section)]


def test_values():
    """To the type, as trained parts are found by the JSON of these."""
    found = flat(base_config().to_dict())
    assert found == BASE and {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in BASE.items()}
    own = {k: v for k, v in flat(quickstart.get_config().to_dict()).items() if found.get(k) != v}
    assert own == {
        "methods": ("passive", "sea", "posterior_rl"), "num_seeds": 1, "train.query_budget": 256,
        "overrides.posterior_rl.train.query_budget": 128, "eval.every_queries": 32,
    }  # fmt: skip


def test_a_config_is_the_callers_own():
    base_config().train.beta = 9.0
    assert base_config().train.beta == 0.1


def test_every_field_of_a_config_is_declared():
    for config in (quickstart, tldr, ultrafeedback, sample_efficiency):
        values = config.get_config()
        names = {field.name for section in sections_of(values) for field in declared(section)}
        assert names | {"overrides"} >= {
            name.split("overrides")[0] or "overrides" for name in flat(values.to_dict())
        }
        assert validate.check_fields(values).problems == []


def test_every_field_and_section_has_a_meaning():
    for section in (*sections_of(base_config()), TextTask):
        assert section.__doc__ and section.__doc__.strip().endswith("."), section
        for field in declared(section):
            meaning = field.rule.meaning
            assert len(meaning.split()) > 1 or meaning in ("layers",), field.name
            assert meaning == meaning.strip() and not meaning.endswith(".") and "\n" not in meaning, (
                field.name
            )


def spoilt(field):
    """Values that are not valid: of another type, not finite, out of bounds."""
    rule, kind = field.rule, field.kind
    values = {bool: [1, "yes"], int: ["x", 1.5, True, None], str: [3]}.get(kind, [])
    if kind is float:
        values = ["x", float("nan"), -float("inf")] + ([] if rule.infinite else [float("inf")])
    if kind not in (bool, int, float, str):
        values = [3, (object(),)]
    elif rule.one_of:
        values.append("nonsense")
    if kind in (int, float):
        values += [] if rule.at_least is None else [kind(rule.at_least - 1)]
        values += [] if rule.above is None else [kind(rule.above)]
        values += [] if rule.at_most is None else [kind(rule.at_most + 1)]
    return values


def assert_named(config, name, value, check):
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})
    problems = check(config).problems
    assert len(problems) == 1 and problems[0].startswith(f"config.{name}={value!r}: valid is "), problems


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_an_invalid_value_of_any_field_is_named(field):
    assert spoilt(field)
    for value in spoilt(field):
        assert_named(base_config(), field.name, value, validate.check)


@pytest.mark.parametrize("field", declared(TextTask), ids=lambda field: field.name)
def test_an_invalid_value_of_real_text_is_named(field):
    for value in spoilt(field):
        assert_named(tldr.get_config(), field.name, value, validate.check_fields)


def test_tables_name_what_is_valid():
    """Of fields whose values are rows of tables in other rooms."""
    for name in ("sampler.kind", "oracle.labels"):
        assert_named(base_config(), name, "nonsense", validate.check)


def test_real_text_has_the_defaults_of_its_task():
    fields = {field.name.removeprefix("task."): field.default for field in declared(TextTask)}
    local = TEXT["local"]
    assert {name: fields[name] for name in local} == local
    assert fields.keys() - local.keys() == {"name", "oracle_seed", "chat", "eos_token"}
