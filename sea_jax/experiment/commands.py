"""The commands of `python -m sea_jax.main <command>`: each trains one model and ends."""

from pathlib import Path

from sea_jax.experiment.workdir import require_writable
from sea_jax.runtime.mesh import is_main
from sea_jax.runtime.owner import own
from sea_jax.types import Config

COMMANDS = ("sft", "rm")  # fine-tuning of the policy; training of a reward model


def cache_folder(config: Config, workdir: str) -> Path:
    """Returns the folder of trained parts, made if absent.

    Raises:
        InputError: where it cannot be written.
    """
    folder = Path(config.cache_dir or Path(workdir) / "cache")
    require_writable("config.cache_dir" if config.cache_dir else "--workdir", folder)
    return folder


def run(command: str, config: Config, workdir: str) -> str:
    """Runs one of `COMMANDS`.

    Args:
        command: its name.
        config: the experiment's; the methods are not read.
        workdir: gets the trained model; trained parts found in its cache are not trained again.

    Returns:
        The results, in words.

    Raises:
        InputError: on a config or work directory that cannot work, before anything is trained; or another
            process works in it.
    """
    from sea_jax.experiment import finetune, reward_training  # they check configs, and checks name commands

    run = {"sft": finetune.run, "rm": reward_training.run}[command]
    cache, folder = cache_folder(config, workdir), Path(workdir)
    require_writable("--workdir", folder)
    with own(folder, is_main()):
        return run(config, cache, folder)
