"""Settings of the site that `make docs` builds: the pages of this folder, the model cards, and the docstrings.

The source folder is the repository's root, so that a link to a card, a picture or a file is the same on the site and in
the repository.
"""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import hf_rope

project = "hf_rope"
version = release = hf_rope.__version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "model_cards/*.md", "examples/data/*.md", "benchmarks/results/*/*.md"]
exclude_patterns = [".*", "build", "dist", "docs/_build", "runs"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

nitpick_ignore_regex = [("py:class", r"transformers\..*")]  # named by autodoc, and no page of this site
default_role = "code"  # what the docstrings put into backticks
autodoc_typehints = "none"  # the docstrings say what goes in, with its shape
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Forward takes", "params_style")]

html_theme = "furo"
html_title = "hf_rope"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "to_index.html"}


def write_mathml(self, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers show by themselves: no script, and nothing from the network."""
    block = isinstance(node, nodes.math_block)
    self.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def escape(app: Sphinx, what: str, name: str, thing: object, options: dict, lines: list[str]) -> None:
    """What reStructuredText and napoleon would misread: |i - j| as a name, an attribute's "kind: text" as its type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment
    lines[:] = [re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    app.config.html_math_renderer = "mathml"
