"""The two kinds of errors of files and buckets: one stops the work, the other concerns one file."""


class CannotGoOn(Exception):
    """The work can't go on, because a place can't be read or written. The message is one line that says what to do."""


class FileError(Exception):
    """One file can't be read or scored. It has a code and a message.

    `code` is `file_missing`, `file_unreadable`, `file_changed`, `file_too_large` or `reader_failed`, or one of
    chestct.invalid_image.InvalidImage.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
