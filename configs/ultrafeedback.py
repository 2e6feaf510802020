"""General tasks (App. F.2): Llama-3-8B-Instruct on UltraFeedback's prompts, SimPO, ArmoRM as the oracle.

`python -m sea_jax.main --config=configs/ultrafeedback.py:model=llama3-8b --workdir=runs/ultrafeedback`

Hardware, folders without a network, and what has not been run: as in configs/tldr.py. The paper judges the
trained policies by AlpacaEval 2.0 (Table 3), which this project does not hold; here the oracle judges
held-out prompts against the starting policy.
"""

from typing import Any

from configs import tldr

MODELS = {
    "llama3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
}


def get_config(options: str = "") -> Any:
    """The paper's hyperparameters; SEA's own are those of TL;DR.

    Args:
        options: model and method as 'name=value', divided by commas; llama3-8b and sea where left out.

    Raises:
        ValueError: on an unknown option.
    """
    chosen = tldr.parse(options, model=tuple(MODELS), method=None)
    config = tldr.get_config()
    config.methods = (chosen.get("method", "sea"),)
    config.task.update(
        dict(
            name="ultrafeedback", dataset="HuggingFaceH4/ultrafeedback_binarized", reference_column="",
            chat="yes", num_train=0, num_tuning=500, num_heldout=1000, prompt_length=1800,
            response_length=1024,
        )
    )  # fmt: skip
    config.rm.update(dict(steps=950, length=2048, micro_batch=8))  # an epoch of 61k pairs; a guess
    config.policy.folder = MODELS[chosen.get("model", "llama3-8b")]
    config.oracle.folder, config.oracle.batch_size = "RLHFlow/ArmoRM-Llama3-8B-v0.1", 16
    # Two devices share a layer, or its weights leave too little room for the caches of long responses.
    config.mesh.fsdp, config.mesh.tensor = 4, 2
    # App. F.2: γ/β = 0.3, and 0.9 is the temperature of AlpacaEval's answers only.
    config.train.update(
        dict(dap="simpo", beta=10.0, margin_ratio=0.3, learning_rate=8e-7, query_budget=60_000, micro_batch=8)
    )
    config.sampler.micro_batch = 8
    config.eval.update(dict(num_prompts=500, num_pairs=500))
    return config
