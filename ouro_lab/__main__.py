"""What `make` calls: python -m ouro_lab run|pipeline|list|status|match|plan|evidence [NAME] [options] [overrides]."""

import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Any

from ouro_lab.config import ConfigError, first_line, nearest, study_names
from ouro_lab.processes import warm_up

VERBS = {
    "run": "ouro_lab.verbs.run",
    "pipeline": "ouro_lab.pipeline.run",
    "list": "ouro_lab.listing.list_studies",
    "status": "ouro_lab.verbs.status",
    "match": "ouro_lab.verbs.match",
    "plan": "ouro_lab.plan.plan",
    "evidence": "ouro_lab.verbs.evidence",
}
OPTIONS = {  # minutes of this machine; tokens to train on, rounds of timing; a machine and the MFU reached on it
    "run": ("--budget",),
    "match": ("--unique", "--timed"),
    "plan": ("--machine", "--mfu"),
}


def main(arguments: list[str]) -> int:
    """Exit status: 0 fine, 1 some runs failed, 2 bad input."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        if not arguments or arguments[0] not in VERBS:
            verb = arguments[0] if arguments else "(none)"
            raise ConfigError(f"verb {verb}: {nearest(verb, VERBS)}")
        if arguments[0] != "list" and len(arguments) < 2:
            raise ConfigError(f"NAME: missing; {nearest('', study_names())}")
        if _forks(arguments):
            warm_up()
        module, _, function = VERBS[arguments[0]].rpartition(".")
        return getattr(import_module(module), function)(*arguments[1:2], *_options(arguments))
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is read-only
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _forks(arguments: list[str]) -> bool:
    """Whether runs of this machine's CPU will be forked, as far as the words tell."""
    elsewhere = any(word.startswith(("trainer=", "launcher=")) for word in arguments)
    return arguments[0] in ("run", "pipeline") and arguments[1] in study_names() and not elsewhere


def _options(arguments: list[str]) -> list[Any]:
    """What follows the study's name: overrides, and what the verb's own options say, None where they are not given."""
    verb, given = arguments[0], {}
    overrides = [word for word in arguments[2:] if not word.startswith("--")]
    for word in arguments[2:]:
        if word.startswith("--"):
            option, _, value = word.partition("=")
            owners = [owner for owner, options in OPTIONS.items() if option in options]
            if verb not in owners:
                who = f"only {owners[0]} does" if owners else f"valid: {', '.join(OPTIONS.get(verb, ())) or 'none'}"
                raise ConfigError(f"{verb}: takes no {option}; {who}")
            given[option] = value
    return [] if verb in ("list", "evidence") else [overrides, *(given.get(name) for name in OPTIONS.get(verb, ()))]


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM stops a study as Ctrl-C does: its runs write where they stand."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
