"""The run that `sea_jax.align` returns: its figure, labels and policy. All is read from its folder."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from sea_jax import tasks
from sea_jax.config.overrides import with_fields
from sea_jax.errors import InputError
from sea_jax.evaluate import single_responses
from sea_jax.experiment.commands import cache_folder
from sea_jax.labels import journal, reading
from sea_jax.models import Decoder
from sea_jax.models.generate import make_sampler
from sea_jax.notebook.settings import as_texts
from sea_jax.pretraining.policy import load_policy
from sea_jax.report import figure, report
from sea_jax.report.runs import read_rows
from sea_jax.runtime.run_folder import read_summary, run_folder
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config, Params

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_SHOWN = {"eval/win_rate_sft": "win rate against the starting policy", "eval/reward": "mean reward"}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AlignedRun:
    """A run of one method on one seed.

    Attributes:
        config: all settings.
        workdir: the work directory, as `python -m sea_jax.main` leaves one.
        report: its tables as text, which report.txt holds too.
    """

    config: Config
    workdir: Path
    report: str

    @property
    def folder(self) -> Path:
        """The run's own folder in the work directory, with its metrics, samples, labels and policy."""
        return run_folder(self.workdir, self.config.methods[0], self.config.seed)

    @property
    def labels(self) -> Labels:
        """The comparisons that the function answered for the method, in the order in which it was asked."""
        return Labels(self.folder / journal.FILE)

    def figure(self) -> Figure:
        """Draws win rate and reward by labels: the figure that report.png holds."""
        runs = report.runs_of(self.workdir, self.config)
        return figure.make({"": runs}, {"": self.config.eval})

    def generate(
        self, prompts: Sequence[str], temperature: float = 0.0, max_tokens: int | None = None, seed: int = 0
    ) -> list[str]:
        """Answers prompts with the policy that the run ended with.

        Args:
            prompts: N texts.
            temperature: of sampling; 0: the likeliest token each time.
            max_tokens: tokens of a response; None: as many as in the run.
            seed: of the samples.

        Returns:
            N texts, as the function gets them: mostly with the space that divides them from their prompts.

        Raises:
            InputError: a prompt is no text or too long for the policy's context, or a number is out of range.
        """
        texts = as_texts(prompts, "prompts")
        if not texts:
            return []
        task, model, params = self._policy
        length = _checked_length(max_tokens, task.response_length, model.config.max_length)
        if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
            raise InputError(f"temperature={temperature!r}: valid is a number of at least 0")
        task = _with_room(task, texts, length, model.config.max_length)
        tokens, mask = task.encode_prompts(texts)
        sampler = make_sampler(model, 1, length, float(temperature), task.eos_id, task.pad_id)
        sample = functools.partial(sampler, params)
        batch, key = min(len(texts), self.config.eval.batch_size), jax.random.key(seed)
        return list(single_responses(task, sample, tokens, mask, batch, key)[0])

    @functools.cached_property
    def _policy(self) -> tuple[Task, Decoder, Params]:
        """The task, whose tokenizer is that of the final policy, and this policy on a device."""
        folder = str(self.folder / "policy")
        own = {"policy.folder": folder} if self.config.policy.folder else {}
        task = tasks.load(
            with_fields(self.config, own), cache_folder(self.config, str(self.workdir)) / "task"
        )
        model, params = load_policy(self.config, folder)
        return task, model, jax.device_put(params)

    def save(self, folder: str | Path) -> Path:
        """Copies the final policy and its tokenizer, in Hugging Face's layout.

        Args:
            folder: new or empty.

        Returns:
            The folder.

        Raises:
            InputError: it holds something, or cannot be written.
        """
        place = Path(folder)
        try:
            if place.exists() and any(place.iterdir()):
                raise InputError(f"folder={str(folder)!r}: holds files; valid is a new or empty folder")
            shutil.copytree(self.folder / "policy", place, dirs_exist_ok=True)
        except OSError as error:
            said = error.strerror or "cannot be copied to"  # copytree collects the errors of files
            raise InputError(f"folder={str(folder)!r}: {said}; valid is a new or empty folder") from error
        return place

    def __repr__(self) -> str:
        summary = read_summary(self.folder)
        last = read_rows(self.folder, summary.queries)[-1]
        found = [
            f"{name} {last[metric]:.3f}" for metric, name in _SHOWN.items() if last.get(metric) is not None
        ]
        return f"<{summary.label}: {', '.join([f'{summary.queries} labels', *found])}; {self.folder}>"


class Labels:
    """The labels of a run; iterate over them, or get a table.

    Each is a dict of the columns that `python -m sea_jax.labels export` writes: prompt, first, second,
    chosen, probability, step and others.

    Args:
        file: the run's journal.
    """

    def __init__(self, file: Path):
        self._file = file

    def __len__(self) -> int:
        return reading.summary(self._file).labels

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return reading.labels(self._file)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a table with a row for each label.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            valid = "pip install 'sea_jax[data]', or list(labels)"
            raise InputError(f"labels.to_pandas: pandas is not installed; valid: {valid}") from None
        table = pandas.DataFrame(list(self), columns=list(reading.COLUMNS))
        for name in ("asked_at", "answered_at"):
            table[name] = pandas.to_datetime(table[name])
        return table

    def __repr__(self) -> str:
        return f"<{len(self)} labels; {self._file}>"


def _checked_length(given: int | None, default: int, context: int) -> int:
    if given is None:
        return default
    if type(given) is not int or not 0 < given < context:
        raise InputError(f"max_tokens={given!r}: valid is 1 to {context - 1}, within the policy's context")
    return given


def _with_room(task: Task, texts: Sequence[str], response: int, context: int) -> Task:
    """Returns the task with room for texts that may be longer than those of the run.

    Raises:
        InputError: by the policy's context one is too long.
    """
    sizes, most = [len(ids) for ids in task.prompt_ids(texts)], context - response
    longest = max(sizes)
    if longest > most:
        at = f"prompts[{sizes.index(longest)}]: {longest} tokens"
        valid = f"at most {most}, the policy's context less {response} of the response"
        raise InputError(f"{at}; valid is {valid}")
    length = max(longest, min(task.prompt_length, most))  # mostly the run's own, which is compiled once
    return dataclasses.replace(task, prompt_length=length)
