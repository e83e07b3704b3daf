"""How Sphinx builds the site: `make docs`. The build needs no network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
# this checkout's package and extensions, also where another version is installed
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

from orchestrator import __version__  # noqa: E402 the path comes first

project, author, copyright = "orchestrator", "", ""
release = version = __version__
html_title = f"orchestrator {__version__}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated_pages", "mathml"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

# docstrings here quote code in single backticks
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# a link to a configuration key or a page that does not exist is a warning, and a warning is an error
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]
