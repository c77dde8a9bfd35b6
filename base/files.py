"""Opening files that must be regular files: for the folders that may not import `logger`."""

from logger.files import NotAFileError as NotAFileError
from logger.files import open_descriptor as open_descriptor
from logger.files import open_file as open_file
from logger.files import read_file as read_file
