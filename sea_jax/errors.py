"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """What the user gave cannot work: a config, a work directory, a model's folder, a text.

    Its message is one line that names the field or file, its value and what is valid. `main` prints
    it and no traceback; any other ValueError is a mistake of the code, and keeps its traceback.
    """
