"""All sections of the base config, in the order in which they are printed; methods bring their own."""

from sea_jax.config.fields import Section
from sea_jax.config.general import Checkpoint, Eval, General, Mesh
from sea_jax.config.oracle import Oracle
from sea_jax.config.people import People
from sea_jax.config.policy import Policy, RewardTraining, Sft
from sea_jax.config.posterior import Backbone, Encoder, Ensemble, PriorHeads, Sea
from sea_jax.config.serve import Serve
from sea_jax.config.task import Task
from sea_jax.config.train import Ray, Sampler, Train
from sea_jax.config.watch import Watch

SECTIONS: tuple[type[Section], ...] = (
    General, Mesh, Task, Oracle, People, Serve, Policy, Sft, RewardTraining, Backbone, Encoder, PriorHeads,
    Train, Sampler, Ray, Ensemble, Sea, Eval, Checkpoint, Watch,
)  # fmt: skip
