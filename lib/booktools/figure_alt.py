"""Plugin for myst-nb: a figure's text for those who cannot see it, from the output to the page.

`learnopt.figures.show` stores the text in the output's metadata. myst-nb 1.4 takes only the width
and the height from there, and would name the figure by its file.
"""


class FigureAlt:
    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        """Render an image that brings an alt text; None leaves everything else to myst-nb."""
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        if inline or alt is None or not data.mime_type.startswith("image/"):
            return None
        images = renderer.render_image(data)
        for image in images:
            image["alt"] = alt
        return images
