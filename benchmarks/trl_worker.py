"""Runs TRL's OnlineDPOTrainer for benchmarks/online_dpo_step.py, one optimizer step per line of stdin.

The script runs in TRL's environment (`environments.ensure("trl", online_dpo_step.TRL)`), never in ours:

    python trl_worker.py MODEL_DIR PROMPTS.npy [--new-tokens 53] [--bf16] [--threads 2] [--seed 0]

The parent process sends one line per request and reads one line per answer, so that it can alternate between
the steps of sea_jax and of TRL:

    'step' -> runs one step of `trainer.train()`: tokenization, generation, reward, losses, backward, AdamW.
              Answer: {"step": int, "seconds": float, "new_tokens": [least, most]}
    'quit' or end of input -> exits with status 0, without an answer.
    any error -> answers {"error": "one line"} and exits with status 1.

The worker prints nothing before the first answer. The seconds of the first step include torch's warm-up; the
time to load the model is never included. Answers go to stdout, and output of the libraries goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

BATCH = 16  # prompts per step; TRL always samples 2 responses to each
TEMPERATURE, BETA = 0.7, 0.1
LEARNING_RATE = 5e-7  # TRL's default; the time of a step does not depend on it


class Quit(Exception):
    """Ends train() before its next step, at the parent's request."""


def claim_stdout() -> TextIO:
    """Returns the original stdout for the answers and redirects file descriptor 1 to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def id_tokenizer(vocab_size: int, eos_id: int) -> Any:
    """Returns a tokenizer whose words are the ids: '<7> <30>' <-> [7, 30].

    TRL takes text and tokenizes it in every step. If the model's own BPE decoded the ids and encoded the text
    again, it could merge tokens differently and change the length of the prompts. The angle brackets prevent
    the special word <0> from matching inside <10>.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(vocab_size)}, unk_token=f"<{eos_id}>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"<{eos_id}>", pad_token=f"<{eos_id}>")


def load_prompts(path: Path, tokenizer: Any) -> list[str]:
    """Reads prompt ids [N, L] and returns them as N texts, which `tokenizer` maps to the same ids."""
    import numpy as np

    ids_NxL = np.load(path)
    if ids_NxL.ndim != 2 or ids_NxL.dtype.kind not in "iu" or len(ids_NxL) < BATCH:
        raise ValueError(
            f"{path.name}: array {ids_NxL.dtype} {list(ids_NxL.shape)}; valid: integers [N >= {BATCH}, L]"
        )
    if ids_NxL.min() < 0 or ids_NxL.max() >= len(tokenizer):
        raise ValueError(f"{path.name}: ids {ids_NxL.min()}..{ids_NxL.max()}; valid: 0..{len(tokenizer) - 1}")
    texts = [" ".join(f"<{i}>" for i in row) for row in ids_NxL]
    if tokenizer(texts, add_special_tokens=False)["input_ids"] != ids_NxL.tolist():
        raise ValueError(f"{path.name}: tokenizing the texts gives other ids; valid: ids that round-trip")
    return texts


def fixed_reward(new_tokens: int, eos_id: int, seen: dict[str, Any]) -> Any:
    """Returns a cheap reward function of the ids, which also checks the lengths of the responses.

    Args:
      new_tokens: number of tokens that every response must have.
      eos_id: id that ends a response; TRL masks the tokens after it.
      seen: receives 'new_tokens', the least and the most unmasked tokens of a response in this step.
    """

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths = [ids.index(eos_id) + 1 if eos_id in ids else len(ids) for ids in completion_ids]
        seen["new_tokens"] = [min(lengths), max(lengths)]
        if len(lengths) != 2 * BATCH or seen["new_tokens"] != [new_tokens, new_tokens]:
            raise ValueError(
                f"responses: {len(lengths)} of {seen['new_tokens']} tokens (least, most); "
                f"valid: {2 * BATCH} of {new_tokens}"
            )
        return [float(sum(ids) % 97) for ids in completion_ids]

    return reward


def tuned_config(args: argparse.Namespace, folder: str) -> Any:
    """Returns the OnlineDPOConfig that is fastest for the same work.

    These settings were measured on two cores and are not used: torch_compile and a static cache (no gain
    beyond the noise), eager attention (slower) and one thread (1.5 times the time). A static cache does
    not work with autocast (TRL 1.16, transformers 5.17: index_copy_ of unlike dtypes). Gradient clipping stays
    on, since the trainer computes the norm in any case.
    """
    import torch
    from trl.experimental.online_dpo import OnlineDPOConfig  # pyright: ignore[reportMissingImports]

    return OnlineDPOConfig(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        bf16=args.bf16,  # autocast; TRL's default
        max_length=2048,  # of prompt and response; no text is cut
        # Only this setting matters: with checkpointing, TRL also generates without a key-value cache.
        gradient_checkpointing=False,
        optim="adamw_torch_fused",  # one pass over the parameters, with a CPU kernel
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=[BETA],
        temperature=TEMPERATURE,
        max_new_tokens=args.new_tokens,
        generation_kwargs={
            "min_new_tokens": args.new_tokens
        },  # top-k, top-p and penalties are off by default
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        dataloader_drop_last=True,  # drops the incomplete batch at the end of an epoch
        dataloader_pin_memory=False,
        max_steps=2**31,  # trains until Quit
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )


def turn_taker(answers: TextIO, seen: dict[str, Any]) -> Any:
    """Returns a callback that waits for the parent before each step and measures the step's seconds.

    The time includes the whole step except the look-up of its 16 texts, which the trainer does before
    on_step_begin.
    """
    from transformers import TrainerCallback

    class TurnTaker(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            line = sys.stdin.readline()
            command = line.strip()
            if not line or command == "quit":
                raise Quit
            if command != "step":
                raise ValueError(f"command: {command!r}; valid: 'step', 'quit'")
            self.began_s = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds = time.perf_counter() - self.began_s
            print(
                json.dumps({"step": state.global_step, "seconds": seconds, **seen}), file=answers, flush=True
            )

    return TurnTaker()


def train(args: argparse.Namespace, answers: TextIO) -> None:
    """Builds the trainer and runs one training step per 'step' line on stdin, until Quit."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM
    from trl.experimental.online_dpo import OnlineDPOTrainer  # pyright: ignore[reportMissingImports]

    if not (args.model / "config.json").is_file():
        raise ValueError(
            f"model: {args.model.name!r} has no config.json; valid: a folder of GPTNeoXForCausalLM"
        )
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    eos_id = model.config.eos_token_id or 0
    tokenizer = id_tokenizer(model.config.vocab_size, eos_id)
    seen: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = OnlineDPOTrainer(
            model=model,
            reward_funcs=fixed_reward(args.new_tokens, eos_id, seen),
            args=tuned_config(args, folder),
            train_dataset=Dataset.from_dict({"prompt": load_prompts(args.prompts, tokenizer)}),
            processing_class=tokenizer,
            callbacks=[turn_taker(answers, seen)],
        )
        trainer.train()


def main() -> int:
    """Runs the worker and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="Hugging Face folder of a GPTNeoXForCausalLM")
    parser.add_argument("prompts", type=Path, help=".npy file of prompt ids [N, L] int32")
    parser.add_argument("--new-tokens", type=int, default=53, help="tokens per response")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16; weights stay in float32")
    parser.add_argument("--threads", type=int, default=2, help="number of torch threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of the batches and of the sampling")
    args = parser.parse_args()
    # The libraries read these variables on import; they disable network access and the experimental notice.
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")
    answers = claim_stdout()
    try:
        train(args, answers)
    except Quit:
        return 0
    except Exception as error:  # the parent waits for an answer after any error
        message = " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps({"error": message}), file=answers, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
