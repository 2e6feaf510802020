"""Computes TRL's preference losses and their gradients, for tests/parity/test_trl.py.

The script runs in TRL's environment, never in ours, and calls the methods of TRL's trainers that training calls:

    python trl_losses.py pairs  DRAWS.npz  ANSWERS.npz    # DPOTrainer, OnlineDPOTrainer, CPOTrainer
    python trl_losses.py xpo    DRAWS.npz  ANSWERS.npz    # XPOTrainer, of an older TRL
    python trl_losses.py model  BATCH.npz  ANSWERS.npz  POLICY_DIR  REFERENCE_DIR    # DPOTrainer on two models

    DRAWS      policy, reference: [N, 2, T] log-probs of the tokens of (y+, y−); mask: [N, 2, T] bool;
               beta, simpo_beta, simpo_gamma, alpha: [N]; y_ref: [N], which of the two π_ref wrote
    ANSWERS    '<trainer> <loss>': [N] losses; '<trainer> <loss>/gradient': [N, 2, T], by policy
    BATCH      prompts, prompt_mask: [B, L]; tokens, mask: [B, 2, T]; beta
    its ANSWERS    '<loss>': the batch's loss; '<loss>/<tensor>': its gradient by a tensor of the policy

Trainers are made without `__init__` and hold only what these methods read. A table takes the place of the language
model in `pairs` and `xpo`; everything is computed in float64 there.
"""

import os
import sys
from collections import defaultdict
from types import SimpleNamespace

# The libraries read these variables on import.
os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch

PROMPT, IGNORED = 1, -100  # tokens of a prompt, and the label of a token that counts nothing


class Table(torch.nn.Module):
    """A language model of two tokens: a text of `prompt id, 0, 0, …` has the log-probs of the row of its prompt id.

    Token 1 has the rest of the probability, so that log-softmax leaves the log-probs of token 0, and their
    gradients, as they are.
    """

    is_gradient_checkpointing = False

    def __init__(self, logps):
        super().__init__()
        self.logps = torch.nn.Parameter(torch.tensor(logps, dtype=torch.float64))

    def forward(self, input_ids, labels=None, **_):
        """Returns the logits, or for labels what TRL's `add_fused_lm_head` returns: log-probs, 0 where ignored."""
        logps = self.logps[input_ids[:, 0]]
        logits = torch.stack([logps, torch.log(-torch.expm1(logps))], -1)
        logits = torch.nn.functional.pad(logits, (0, 0, 0, 1))  # after the last token
        if labels is None:
            return SimpleNamespace(logits=logits)
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=torch.where(labels[:, 1:] == IGNORED, 0.0, logps),
            entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(),
        )  # fmt: skip


def texts(rows, mask):
    """Returns ids and attention mask of the table's rows: a prompt of one token, then their responses."""
    mask = torch.tensor(mask[rows], dtype=torch.long)
    ids = torch.nn.functional.pad(torch.zeros_like(mask), (PROMPT, 0))
    ids[:, 0] = torch.tensor(rows)
    return ids, torch.nn.functional.pad(mask, (PROMPT, 0), value=1)


def bare(cls, **attributes):
    """Makes a trainer without its `__init__`, on one process of a CPU."""
    trainer = cls.__new__(cls)
    same = lambda x: x  # noqa: E731
    trainer.accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=same,
        gather_for_metrics=same,
        backward=lambda loss: loss.backward(),
    )
    vars(trainer).update(attributes)
    return trainer


def dpo_trainer(loss, beta, model, reference):
    """Returns a DPOTrainer with its defaults."""
    from trl import DPOTrainer

    return bare(
        DPOTrainer, model=model, ref_model=reference, beta=beta, loss_types=[loss], loss_weights=[1.0],
        f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False, precompute_ref_logps=False,
        aux_loss_enabled=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip


def dpo(loss, draw, model, reference):
    """Runs DPOTrainer._compute_loss."""
    ids, attention = texts([0, 1], draw["mask"])
    completion = attention.clone()
    completion[:, :PROMPT] = 0
    inputs = dict(input_ids=ids, attention_mask=attention, completion_mask=completion)
    trainer = dpo_trainer(loss, draw["beta"], model, reference)
    value = trainer._compute_loss(model, inputs, return_outputs=False)
    value.backward()
    return value


def online_dpo(loss, draw, model, reference):
    """Runs OnlineDPOTrainer.training_step on given responses, of which the first has the higher reward."""
    from trl.experimental.online_dpo import OnlineDPOTrainer

    ids, attention = texts([0, 1], draw["mask"])
    prompts, responses = ids[:, :PROMPT], ids[:, PROMPT:]
    given = prompts, attention[:, :PROMPT], responses, attention[:, PROMPT:], None
    args = SimpleNamespace(
        loss_type=loss, use_vllm=False, missing_eos_penalty=None, torch_empty_cache_steps=None, optim=None,
        n_gpu=1, gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer = bare(
        OnlineDPOTrainer, model=model, ref_model=reference, _beta=draw["beta"], args=args, max_length=2**31,
        reward_funcs=[None], eos_token_ids=[1], stats=defaultdict(list),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        _generate=lambda *_: given,
        _calculate_rewards_from_functions=lambda **_: torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    return trainer.training_step(model, {"prompt": ["a prompt"]})


def cpo(loss, draw, model, reference):
    """Runs CPOTrainer.get_batch_loss_metrics, which averages the log-probs over the tokens for SimPO."""
    from trl.experimental.cpo import CPOTrainer

    del reference
    batch = {}
    for row, name in enumerate(("chosen", "rejected")):
        ids, attention = texts([row], draw["mask"])
        labels = torch.where(attention == 1, ids, IGNORED)
        labels[:, :PROMPT] = IGNORED
        batch |= {f"{name}_input_ids": ids, f"{name}_attention_mask": attention, f"{name}_labels": labels}
    trainer = bare(
        CPOTrainer, loss_type=loss, beta=draw["simpo_beta"], simpo_gamma=draw["simpo_gamma"], cpo_alpha=0.0,
        alpha=0.0, label_smoothing=0.0, is_encoder_decoder=False, pad_token_id=0, aux_loss_enabled=False,
    )  # fmt: skip
    value, _ = trainer.get_batch_loss_metrics(model, batch)
    value.backward()
    return value


def xpo(loss, draw, model, reference):
    """Runs XPOTrainer._compute_logprobs and _compute_losses; the pair's other response is the policy's."""
    from trl.experimental.xpo import XPOTrainer

    y_ref = int(draw["y_ref"])
    by_policy, by_reference = (
        dict(zip(("input_ids", "attention_mask"), texts([row], draw["mask"]), strict=True))
        for row in (1 - y_ref, y_ref)
    )
    trainer = bare(
        XPOTrainer, ref_model=reference, _beta=draw["beta"], _alpha=draw["alpha"],
        args=SimpleNamespace(loss_type=loss),
    )  # fmt: skip
    logps = trainer._compute_logprobs(model, by_policy, by_reference, PROMPT)
    value, _, _ = trainer._compute_losses(*logps, chosen_mask=torch.tensor([y_ref == 1]))
    value.backward()
    return value


LOSSES = {
    "pairs": {
        "DPOTrainer": (dpo, ("sigmoid", "hinge", "ipo")),
        "OnlineDPOTrainer": (online_dpo, ("sigmoid", "ipo")),
        "CPOTrainer": (cpo, ("simpo",)),
    },
    "xpo": {"XPOTrainer": (xpo, ("sigmoid",))},
}


def on_draws(trainers, draws):
    """Computes each loss of each draw by itself, since some trainers return only a batch's mean."""
    answers = {}
    for trainer, (function, losses) in trainers.items():
        for loss in losses:
            values, gradients = [], []
            for i in range(len(draws["mask"])):
                draw = {name: array[i] for name, array in draws.items()}
                scalars = {name: value.item() for name, value in draw.items() if not value.shape}
                model, reference = Table(draw["policy"]), Table(draw["reference"])
                values.append(function(loss, draw | scalars, model, reference).item())
                gradients.append(model.logps.grad.numpy())
            answers[f"{trainer} {loss}"] = np.array(values)
            answers[f"{trainer} {loss}/gradient"] = np.array(gradients)
    return answers


def on_models(batch, policy_folder, reference_folder):
    """Runs DPOTrainer's collator, its fused head and `_compute_loss` on a batch of token ids."""
    from transformers import AutoModelForCausalLM
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.utils import add_fused_lm_head

    model, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        for folder in (policy_folder, reference_folder)
    )
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    add_fused_lm_head(reference)
    examples = []
    for b in range(len(batch["prompts"])):
        chosen, rejected = (batch["tokens"][b, i][batch["mask"][b, i]].tolist() for i in range(2))
        prompt = batch["prompts"][b][batch["prompt_mask"][b]].tolist()
        examples.append(dict(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected))
    inputs = DataCollatorForPreference(pad_token_id=0)(examples)
    answers = {}
    for loss in ("sigmoid", "hinge", "ipo"):
        model.zero_grad()
        value = dpo_trainer(loss, float(batch["beta"]), model, reference)._compute_loss(model, inputs, False)
        value.backward()
        answers[loss] = value.item()
        answers |= {f"{loss}/{name}": tensor.grad.numpy().copy() for name, tensor in model.named_parameters()}
    return answers


def main():
    """Reads the file of draws or of a batch, and writes TRL's answers."""
    kind, inputs, outputs, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    with np.load(inputs) as file:
        arrays = dict(file)
    answers = on_models(arrays, *folders) if kind == "model" else on_draws(LOSSES[kind], arrays)
    np.savez(outputs, **answers)


if __name__ == "__main__":
    main()
