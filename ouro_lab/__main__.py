"""What `make` calls: python -m ouro_lab run|pipeline|list|status|match|evidence [NAME] [--budget=…] [overrides]."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ouro_lab.config import ConfigError, nearest
from ouro_lab.run import first_line


def main(arguments: list[str]) -> int:
    """Exit status: 0 fine, 1 some runs failed, 2 bad input."""
    from ouro_lab import pipeline, verbs

    signal.signal(signal.SIGTERM, _stop)
    known: dict[str, Callable[..., int]] = {
        "run": verbs.run,
        "pipeline": pipeline.run,
        "list": verbs.list_studies,
        "status": verbs.status,
        "match": verbs.match,
        "evidence": verbs.evidence,
    }
    try:
        if not arguments or arguments[0] not in known:
            verb = arguments[0] if arguments else "(none)"
            raise ConfigError(f"verb {verb}: {nearest(verb, known)}")
        if arguments[0] != "list" and len(arguments) < 2:
            raise ConfigError(f"NAME: missing; {nearest('', verbs.study_names())}")
        return known[arguments[0]](*arguments[1:2], *_options(arguments))
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is read-only
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _options(arguments: list[str]) -> list[Any]:
    """What follows the study's name: overrides, of `run` the minutes of --budget=, of `match` --unique= tokens."""
    verb, given = arguments[0], {}
    overrides = [word for word in arguments[2:] if not word.startswith(("--budget=", "--unique="))]
    for option, owner in (("--budget=", "run"), ("--unique=", "match")):
        given[owner] = [word.removeprefix(option) for word in arguments[2:] if word.startswith(option)]
        if given[owner] and verb != owner:
            raise ConfigError(f"{verb}: takes no {option[:-1]}; only {owner} does")
    return [] if verb in ("list", "evidence") else [overrides, *given.get(verb, [])[-1:]]


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM stops a study as Ctrl-C does: its runs write where they stand."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
