"""Sphinx reads this: the look of the site."""

project = "Kindling"
author = "Kindling"
html_title = "Kindling"
extensions = ["myst_parser"]
myst_heading_anchors = 6  # links lead to headings by the names that code hosts give them
suppress_warnings = ["misc.highlighting_failure"]  # parts of code need not be whole programs

html_theme = "furo"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_use_index = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
_FIRE = {"light": "#b93c0b", "dark": "#ff8a50"}
html_theme_options = {
    f"{mode}_css_variables": {"color-brand-primary": colour, "color-brand-content": colour}
    for mode, colour in _FIRE.items()
}
