"""Sphinx extension: the built pages ask no other host for anything.

MathJax and its fonts are copied out of the package sphinx-mathjax-offline into the site. The
live-kernel script (thebe, from unpkg) and the widget scripts (from two CDNs) are left out: the
interactive figures of the book are plain HTML that needs neither, and the notebooks themselves keep
their ipywidgets. tests/test_site.py opens every page with the network cut and fails on any request.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.errors import ExtensionError

MATHJAX_SCRIPT = "tex-chtml.js"  # TeX in, HTML with woff fonts out; holds assistive MathML too
MATHJAX_FONTS = "output/chtml/fonts/woff-v2"


def mathjax_source() -> Path:
    """The folder that holds MathJax inside the package sphinx-mathjax-offline."""
    # The package's folder has hyphens in its name, so `import` cannot spell it.
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError(
            "sphinx-mathjax-offline is not installed: run `make setup`, or install the extra `book`"
        )
    return Path(spec.origin).parent / "static" / "mathjax"


def settle_config(app, config):
    """Use the copied MathJax; with BOOK_EXECUTE=off show the stored outputs and execute nothing."""
    config.mathjax_path = f"mathjax/{MATHJAX_SCRIPT}"
    config.nb_ipywidgets_js = {}
    if os.environ.get("BOOK_EXECUTE") == "off":
        config.nb_execution_mode = "off"


def replace_badges(app, doctree):
    """Show an image that lies on another host, like a notebook's Colab badge, as its words."""
    for image in list(doctree.findall(nodes.image)):
        if "://" in image.get("uri", ""):
            image.replace_self(nodes.inline(text=image.get("alt") or image["uri"]))


def copy_mathjax(app, exception):
    """Put the one script and the fonts into the site: a small part of the package's 24 MB."""
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


def mend_roles(app, pagename, templatename, context, doctree):
    """Give the entries of the bibliography a role that screen readers know inside a list."""
    if "body" in context:  # docutils writes doc-biblioentry, which ARIA has since withdrawn
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app):
    app.connect("config-inited", settle_config)
    app.connect("doctree-read", replace_badges, priority=100)  # before Sphinx collects the images
    # Late, so that it runs after everyone who adds a script to the page.
    app.connect("html-page-context", drop_live_kernel, priority=900)
    app.connect("html-page-context", mend_roles)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
