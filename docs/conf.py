"""Configures the Sphinx site that `make docs` builds."""

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # autodoc imports the checkout, not an installed copy

from sea_jax import __version__  # noqa: E402
from sea_jax.runtime.process import fast_compile_flag  # noqa: E402

project = "sea_jax"
author = "The sea_jax authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

# Markdown
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

# Notebooks, which git holds without outputs. docs/notebooks is a link to notebooks/. A cell that fails is an
# error.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600  # seconds for a cell
nb_merge_streams = True
os.environ["JAX_PLATFORMS"] = "cpu"  # of the notebooks' kernels
os.environ["XLA_FLAGS"] = fast_compile_flag()

# API pages: one page per module, written by autosummary into docs/api/generated.
autosummary_generate = True
autosummary_ignore_module_all = True  # submodules of packages whose __all__ names functions
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
# Packages of the optional extras and of the vLLM environment: the site needs requirements.in alone.
autodoc_mock_imports = ["datasets", "mosec", "openai", "pyarrow", "ray", "torch", "transformers", "vllm"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "sea_jax"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "show_navbar_depth": 1}
html_sidebars = {"_modules/**": []}  # the tree of all pages takes most of the time of each
html_show_copyright = False

_CODE = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
_RST_MARKUP = re.compile(r"[|*`]|(?<=\w)_(?!\w)")
_SECTION = re.compile(r"(Args|Attributes|Raises|References|Returns|Yields):")


def _to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns a docstring, plain text with Markdown's code spans, into reStructuredText for napoleon."""
    lines[:] = _separate_blocks(_escape_markup("\n".join(lines)).split("\n"))


def _escape_markup(source: str) -> str:
    """Escapes `|`, `*` and a trailing `_` outside code, and doubles the backquotes of code spans."""
    text, end = "", 0
    for match in _CODE.finditer(source):
        code = " ".join(match[0].strip("`").split())
        # The escaped spaces vanish; they let a code span touch letters, as in `Scorer`s.
        text += _RST_MARKUP.sub(r"\\\g<0>", source[end : match.start()]) + f"\\ ``{code}``\\ "
        end = match.end()
    return text + _RST_MARKUP.sub(r"\\\g<0>", source[end:])


def _separate_blocks(lines: list[str]) -> list[str]:
    """Puts blank lines around indented blocks, and makes the entries of References a list."""
    out: list[str] = []
    section, section_indent = "", 0
    for source in lines:
        line, indent, last = source, _indent(source), out[-1] if out else ""
        if line.strip() and indent <= section_indent:
            section = ""
        if match := _SECTION.fullmatch(line.strip()):
            section, section_indent = match[1], indent
        elif section == "References" and line.strip():
            bullet = "- " if indent == section_indent + 4 else ""
            line = " " * (section_indent + 4) + (bullet or "  ") + line.strip()
        if line.strip() and last.strip():
            dedent = _indent(line) < _indent(last)
            block = not section and _indent(line) > _indent(last) and len(out) > 1 and out[-2].strip()
            out += [""] if dedent or block else []
        out.append(line)
    return out


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def setup(app: Any) -> None:
    """Registers the docstring filter before napoleon's, which has priority 500."""
    app.connect("autodoc-process-docstring", _to_rst, priority=400)
