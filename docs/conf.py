"""Configures the Sphinx site that `make docs` builds."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # autodoc imports the checkout, not an installed copy

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "sea_jax"
author = "The sea_jax authors"
copyright = author
version = release = _PROJECT["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# Markdown
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

# API pages: one page per module, written by autosummary into docs/api/generated.
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
# Packages of the optional extras and of the vLLM environment: the site needs requirements.txt alone.
autodoc_mock_imports = ["datasets", "mosec", "openai", "pyarrow", "ray", "torch", "transformers", "vllm"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "sea_jax"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "show_navbar_depth": 1}
html_show_copyright = False

_CODE = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
_RST_MARKUP = re.compile(r"[|*`]|(?<=\w)_(?!\w)")


def _code(match: re.Match) -> str:
    """Returns a code span of Markdown as one of reStructuredText, which may touch letters on either side."""
    return "\\ ``" + " ".join(match[0].strip("`").split()) + "``\\ "


def _to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns a docstring, plain text with Markdown's code spans, into reStructuredText.

    Outside code, `|`, `*` and a trailing `_` are escaped, and an indented block ends with a blank line.
    """
    text, end = "", 0
    source = "\n".join(lines)
    for match in _CODE.finditer(source):
        text += _RST_MARKUP.sub(r"\\\g<0>", source[end : match.start()]) + _code(match)
        end = match.end()
    text += _RST_MARKUP.sub(r"\\\g<0>", source[end:])
    lines[:] = []
    for line in text.split("\n"):
        if line.strip() and lines and lines[-1].strip() and _indent(line) < _indent(lines[-1]):
            lines.append("")
        lines.append(line)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def setup(app: Any) -> None:
    """Registers the docstring filter before napoleon's, which has priority 500."""
    app.connect("autodoc-process-docstring", _to_rst, priority=400)
