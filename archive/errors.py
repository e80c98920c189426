"""The two kinds of errors: one ends the command, the other is a row of the table."""


class CannotGoOn(Exception):
    """The command ends. The message is one line that says what to do."""


class FileError(Exception):
    """One file can't be scored. Its row has the code and the message.

    `code` is `file_missing`, `file_unreadable`, `file_changed`, `file_too_large` or `reader_failed`, or one of
    chestct.invalid_image.InvalidImage.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
