"""Repositories of the Hugging Face hub, by 'name' or 'name@revision'."""

from collections.abc import Sequence
from pathlib import Path

from sea_jax.errors import InputError


def split_revision(name: str) -> tuple[str, str | None]:
    """Splits 'name@revision' into the two; the revision is a branch, tag, commit or 'refs/pr/1'.

    Returns:
        The repository's name, and None for its default branch.
    """
    repository, _, revision = name.partition("@")
    return repository, revision or None


def download(name: str, patterns: Sequence[str], what: str) -> Path:
    """Returns the folder of a local copy of a repository's files, fetched where it is not in the cache.

    Args:
        name: 'name' or 'name@revision'.
        patterns: globs of the files to fetch.
        what: 'model' or 'tokenizer', for the error.

    Raises:
        InputError: if the hub does not give them.
    """
    from huggingface_hub import snapshot_download

    repository, revision = split_revision(name)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        raise InputError(
            f"{what} {name!r}: neither a folder here nor to be had from the hub ({first_line(error)})"
        ) from error


def list_files(name: str) -> list[str]:
    """Returns the names of a repository's files; none where the hub cannot be asked.

    Args:
        name: 'name' or 'name@revision'.
    """
    from huggingface_hub import list_repo_files

    repository, revision = split_revision(name)
    try:
        return list_repo_files(repository, revision=revision)
    except Exception:  # no network, or no such repository: `download` finds the cached copy, or says so
        return []


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the error's name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
