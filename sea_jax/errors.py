"""The errors that are told in one line: what the user can mend, and what another service did not do."""


class InputError(ValueError):
    """What the user gave cannot work: a config, a work directory, a model's folder, a text.

    Each problem is one line that names the field or file, its value and what is valid. `main` prints them and
    no traceback; any other ValueError is a mistake of the code, and keeps its traceback.

    Args:
        *problems: one line each.
    """

    def __init__(self, *problems: str):
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """The lines, one per problem."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


class ServiceError(RuntimeError):
    """A service that a run needs did not do its part within its bound.

    Its message is one line that names what was awaited, for how long, and what came instead; `main` prints
    it and no traceback.
    """
