"""Fixtures of more than one file; what they import, they import when they are used."""

from tests.report_pages import folder, kept_folder, kept_pictures, pictures  # noqa: F401
