"""The errors that are told in one line: what the user can mend, and what another service did not do."""


class InputError(ValueError):
    """What the user gave cannot work: a config, a work directory, a model's folder, a text.

    Its message is one line that names the field or file, its value and what is valid. `main` prints
    it and no traceback; any other ValueError is a mistake of the code, and keeps its traceback.
    """


class ServiceError(RuntimeError):
    """A service that a run needs did not do its part within its bound.

    Its message is one line that names what was awaited, for how long, and what came instead; `main` prints
    it and no traceback.
    """
