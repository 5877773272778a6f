"""Sphinx extension: the built pages ask no other host for anything.

MathJax and its fonts are copied out of the package sphinx-mathjax-offline into the site. The live-kernel
script (thebe, from unpkg) and the widget scripts (from two CDNs) are left out: the interactive figures of
the book are plain HTML that needs neither, and the notebooks themselves keep their ipywidgets.
tests/test_site.py opens every page with the network cut and fails on any request that leaves it.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from sphinx.errors import ExtensionError

MATHJAX_SCRIPT = "tex-chtml.js"  # TeX in, HTML with woff fonts out; assistive MathML and the menu inside
MATHJAX_FONTS = "output/chtml/fonts/woff-v2"


def mathjax_source() -> Path:
    """The folder that holds MathJax inside the package sphinx-mathjax-offline."""
    # The package's folder has hyphens in its name, so `import` cannot spell it.
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError(
            "sphinx-mathjax-offline is not installed: run `pip install -e '.[book]'`, or `make setup`."
        )
    return Path(spec.origin).parent / "static" / "mathjax"


def settle_config(app, config):
    """Point Sphinx at the copied MathJax; BOOK_EXECUTE=off shows the stored outputs instead of executing."""
    config.mathjax_path = f"mathjax/{MATHJAX_SCRIPT}"
    config.nb_ipywidgets_js = {}
    if os.environ.get("BOOK_EXECUTE") == "off":
        config.nb_execution_mode = "off"


def copy_mathjax(app, exception):
    """Put the one script and the fonts (about 1.4 MB) beside the page; the whole package is 24 MB."""
    if exception is not None or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "mathjax"
    (target / MATHJAX_FONTS).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(mathjax_source() / MATHJAX_SCRIPT, target)
    shutil.copytree(mathjax_source() / MATHJAX_FONTS, target / MATHJAX_FONTS, dirs_exist_ok=True)


def drop_live_kernel(app, pagename, templatename, context, doctree):
    """Remove thebe's scripts, which jupyter-book adds even where its launch button is off."""

    def is_thebe(script):
        body = getattr(script, "attributes", {}).get("body") or ""
        return "sphinx-thebe" in str(getattr(script, "filename", "")) or "THEBE_JS_URL" in body

    context["script_files"] = [s for s in context.get("script_files", []) if not is_thebe(s)]
    context["css_files"] = [c for c in context.get("css_files", []) if not is_thebe(c)]


def setup(app):
    app.connect("config-inited", settle_config)
    # Late, so that it runs after everyone who adds a script to the page.
    app.connect("html-page-context", drop_live_kernel, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
