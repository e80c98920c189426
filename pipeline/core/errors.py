"""What can go wrong in a way the person at the terminal can mend."""


class StageError(Exception):
    """Ends a command with one line that says what to do and a named exit code: 2 bad input, 3 below the gate."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ParamsError(StageError):
    """params.yaml is not what the pipeline reads; the message names every key as `section.key`."""


class DataError(StageError):
    """The images are missing, incomplete or too few; the message names the folder or the class."""


class TrackingError(StageError):
    """MLflow's store or server can't be used; the message says where it is, without a password."""
