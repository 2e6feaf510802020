"""Makes the sampler that a config names."""

from jax.sharding import Mesh

from sea_jax.actors.jax_sampler import JaxSampler
from sea_jax.actors.sampler import Lengths, Sampler
from sea_jax.actors.vllm_sampler import VllmOptions, VllmSampler
from sea_jax.models.decoder import Decoder
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config

KINDS = ("jax", "vllm")


def sampler_for(
    config: Config, task: Task | Lengths, model: Decoder, mesh: Mesh, sampling_mesh: Mesh | None = None
) -> Sampler:
    """Makes the sampler of an experiment: Ray actors if config.ray.actors is set, else `local_sampler`.

    Args:
        config: the experiment's.
        task: supplies prompt_length, response_length, eos_id and pad_id.
        model: the policy's module.
        mesh: the devices of the learner.
        sampling_mesh: the devices that sample, if they are others.

    Returns:
        The sampler; the caller closes it.
    """
    if config.ray.actors:
        from sea_jax.actors.ray_workers import RaySampler  # imports Ray, an extra

        lengths = Lengths(task.prompt_length, task.response_length, task.eos_id, task.pad_id)
        return RaySampler(config, lengths, model, mesh, local_sampler)
    return local_sampler(config, task, model, mesh, sampling_mesh)


def local_sampler(
    config: Config, task: Task | Lengths, model: Decoder, mesh: Mesh, sampling_mesh: Mesh | None = None
) -> Sampler:
    """Makes the sampler of config.sampler.kind in this process; the arguments are those of `sampler_for`."""
    fixed = model, task.response_length, task.eos_id, task.pad_id, mesh
    if config.sampler.kind == "vllm":
        fields = {name: config.sampler[name] for name in VllmOptions._fields if name in config.sampler}
        options = VllmOptions(prompt_length=task.prompt_length, dtype=config.policy.dtype, **fields)
        return VllmSampler(*fixed, options)
    return JaxSampler(*fixed, config.sampler.micro_batch, sampling_mesh)
