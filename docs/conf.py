"""The documentation site: `make docs` builds it with every warning an error.

Pages are Markdown (MyST), the API reference is read from the docstrings, equations become MathML, and the theme brings
its own fonts and scripts, so that the site reads the same without a network.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# The reference must show this checkout, wherever an installed copy lies.
sys.path[:0] = [str(ROOT), str(HERE / "extensions")]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# fvcore 0.1.5 and Detectron2 0.6 were written for older torch; these are theirs, as in pyproject.toml.
warnings.filterwarnings("ignore", message="`torch.jit.script")
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

project = "S2-UniSeg on Detectron2"
author = "The S2-UniSeg D2 authors"
project_copyright = f"2026, {author}"
_version = re.search(r'^__version__ = "([^"]+)"', (ROOT / "s2uniseg_d2/__init__.py").read_text(encoding="utf-8"), re.M)
version = release = _version.group(1) if _version else ""

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "reference", "root_pages"]
exclude_patterns = ["extensions"]
html_theme = "furo"
html_title = f"{project} {release}"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# No inventory of other projects: building needs no network, and Detectron2 0.6 publishes none that resolves.
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The notebook is kept without outputs; the build runs it when it has changed, so that a reader sees what it gives.
nb_execution_mode = os.environ.get("DOCS_NOTEBOOKS", "cache")
nb_merge_streams = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True

# The docstrings' single backticks are code.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
