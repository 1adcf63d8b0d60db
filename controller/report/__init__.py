"""The report: one JSON document (schema.json), and the forms that people and programs read it in."""

from controller.report.document import DeviceResult, build, caveat
from controller.report.forms import FORMS, render

__all__ = ["FORMS", "DeviceResult", "build", "caveat", "render"]
