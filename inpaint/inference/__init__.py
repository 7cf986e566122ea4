"""Filling images: progressive reconstruction over any method, any size, any kind of photo."""

from inpaint.inference.filling import fill
from inpaint.inference.photo_files import Photo, read_photo, write_photo
from inpaint.inference.photos import Filled, fill_photo
from inpaint.inference.preparing import prepare
from inpaint.inference.progressive import Schedule, progressive, schedule

__all__ = [
    "Filled",
    "Photo",
    "Schedule",
    "fill",
    "fill_photo",
    "prepare",
    "progressive",
    "read_photo",
    "schedule",
    "write_photo",
]
