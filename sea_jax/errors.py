"""Errors that commands report in one line per problem, without a traceback.

No key or token of the environment is in a message, also where a service has sent it back.
"""

from sea_jax.credentials import redact


class InputError(ValueError):
    """Invalid input of the user: a config, a work directory, a model's folder, a text.

    Each problem is one line that names the field or file, its value and the valid values. `main` prints these
    lines and no traceback; any other ValueError is a bug and keeps its traceback.

    Args:
        *problems: one line each.
    """

    def __init__(self, *problems: str):
        super().__init__(*map(redact, problems))

    @property
    def problems(self) -> tuple[str, ...]:
        """The lines, one per problem."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


class ServiceError(RuntimeError):
    """Failure of a service that a run needs, such as a timeout or an invalid reply.

    Its message is one line that names the service, the time limit and the reply; `main` prints it and no
    traceback.
    """

    def __init__(self, message: str):
        super().__init__(redact(message))


class StorageError(RuntimeError):
    """Failure of a disk: full, read-only, a quota.

    Its message is one line that names the file; `main` prints it and no traceback. Everything that was on the
    disk before stays there, and the same command goes on from it.
    """

    def __init__(self, message: str):
        super().__init__(redact(message))


class StoppedError(RuntimeError):
    """End of a run at somebody's request; its message says where it stopped and how to go on."""


class SpendLimitError(StoppedError):
    """End of a run whose judge has cost what it may.

    Attributes:
        status: the exit status. The same command does not go on, so a scheduler shall not repeat it.
    """

    status = 78


class OpenQuestionsError(StoppedError):
    """End of a run that has asked people and does not wait for them.

    Attributes:
        status: the exit status.
    """

    status = 77


class WatchError(RuntimeError):
    """End of a run by a watch that config.watch.stop names, after it was saved.

    Its message is one line that names the watch, its value and bound, what to do and how to go on.

    Attributes:
        status: the exit status. The same command does not go on, so a scheduler shall not repeat it.
    """

    status = 76
