#!/bin/sh
# .venv/bin/chestct is a copy of this: it runs the command of pyproject.toml's [project.scripts] with this clone's code.
bin=$(dirname "$(readlink -f "$0")")
exec "$bin/python" -P -c 'import sys; sys.argv[0] = "chestct"; sys.path.insert(0, sys.argv.pop(1))
from archive.command import main
sys.exit(main())' "${bin%/.venv/bin}" "$@"
