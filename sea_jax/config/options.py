"""Options of config files, as 'size=1b,dap=dpo' in --config=configs/tldr.py:size=1b,dap=dpo."""


def parse_options(options: str, **valid: tuple[str, ...] | None) -> dict[str, str]:
    """Parses a config's options: 'a=1,b=2' -> {'a': '1', 'b': '2'}.

    Args:
        options: the part behind the config file's colon.
        **valid: the names, each with its values, or None where another place checks them.

    Raises:
        ValueError: naming the option, its value and what is valid.
    """
    chosen = {}
    for part in filter(None, options.split(",")):
        name, _, value = part.partition("=")
        if name not in valid:
            raise ValueError(f"config option {part!r}: valid names are {', '.join(valid)}")
        allowed = valid[name]
        if allowed is not None and value not in allowed:
            raise ValueError(f"config option {part!r}: valid values are {', '.join(allowed)}")
        chosen[name] = value
    return chosen
