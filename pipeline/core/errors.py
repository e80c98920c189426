"""Errors that the user can fix."""


class StageError(Exception):
    """Ends a command with one line that says what to do, and an exit code: 2 for bad input, 3 if below the gate."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ParamsError(StageError):
    """params.yaml is invalid. The message names every wrong key as `section.key`."""


class DataError(StageError):
    """The images are missing, incomplete or too few. The message names the folder or the class."""


class TrackingError(StageError):
    """MLflow's store or server cannot be used. The message has its address, without a password."""
