"""`python -m dicom_node` runs the node. `dead` lists the dead letters, and `retry` takes one or all up again."""

import argparse
import logging
import signal
import sys
import threading
import warnings
from typing import Final

from chestct.interrupts import INTERRUPTED
from dicom_node import spool
from dicom_node.node import Node
from dicom_node.settings import Settings, SettingsError

_QUOTE_HEADERS: Final = ("pydicom", "pynetdicom", "highdicom")
"""Packages whose log lines and warnings may quote a header."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dicom_node", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("dead", help="list the dead letters")
    retry = commands.add_parser("retry", help="take dead letters up again")
    retry.add_argument("key", help="the key that the log and `dead` name, or `all`")
    arguments = parser.parse_args()
    try:
        settings = Settings.read()
        if arguments.command == "dead":
            list_dead(settings)
        elif arguments.command == "retry":
            take_up(settings, arguments.key)
        else:
            run(settings)
    except SettingsError as error:
        sys.exit(_failed(str(error)))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        sys.exit(_failed(f"can't start: {error.strerror or error}{place}"))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def run(settings: Settings) -> None:
    """Run the node until SIGTERM or SIGINT."""
    quieten()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    node = Node(settings)
    stop.wait()
    node.drain()


def list_dead(settings: Settings) -> None:
    for key, reason in spool.dead_letters(settings.spool):
        print(f"{key}  {reason}")


def take_up(settings: Settings, key: str) -> None:
    keys = [key for key, _ in spool.dead_letters(settings.spool)] if key == "all" else [key]
    for one in keys:
        if not spool.retry(settings.spool, one):
            sys.exit(_failed(f"there is no dead letter {one}; `python -m dicom_node dead` lists them"))
        print(f"{one} is taken up again")


def quieten() -> None:
    """Log the node's own lines only. Those of the packages may quote a header."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in _QUOTE_HEADERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")


def _failed(words: str) -> int:
    print(f"error: {words}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
