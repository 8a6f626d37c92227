"""What `make` calls: python -m ouro_lab run|list|status|evidence [NAME] [overrides]."""

import sys

from ouro_lab.config import ConfigError, nearest


def main(arguments: list[str]) -> int:
    """Exit status: 0 fine, 1 some runs failed, 2 bad input."""
    from ouro_lab import verbs

    known = {"run": verbs.run, "list": verbs.list_studies, "status": verbs.status, "evidence": verbs.evidence}
    try:
        if not arguments or arguments[0] not in known:
            verb = arguments[0] if arguments else "(none)"
            raise ConfigError(f"verb {verb}: {nearest(verb, known)}")
        if arguments[0] != "list" and len(arguments) < 2:
            raise ConfigError(f"NAME: missing; {nearest('', verbs.study_names())}")
        return known[arguments[0]](*arguments[1:2], *([arguments[2:]] if arguments[0] in ("run", "status") else []))
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
