"""python -m ouro_lab.interop export RUN FOLDER [--dtype=bfloat16] [--max-shard-bytes=N] | show FOLDER"""

import sys
from typing import Any

from ouro_lab.interop.trunk import Trunk, export_trunk, open_trunk
from ouro_lab.interop.weights import DTYPES

USAGE = "usage: python -m ouro_lab.interop export RUN FOLDER [--dtype=…] [--max-shard-bytes=…] | show FOLDER"


def main(arguments: list[str]) -> int:
    """Exit status: 0 fine, 2 bad input."""
    names = [word for word in arguments if not word.startswith("--")]
    try:
        options = _options([word for word in arguments if word.startswith("--")])
        if names[:1] == ["export"] and len(names) == 3:
            trunk = export_trunk(names[1], names[2], **options)
            print(f"{names[2]}: {summary(trunk)}")
        elif names[:1] == ["show"] and len(names) == 2 and not options:
            print(summary(open_trunk(names[1])))
        else:
            raise ValueError(f"{' '.join(arguments) or '(nothing)'}: {USAGE}")
    except (ValueError, OSError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def summary(trunk: Trunk) -> str:
    """Shape, parameters, digest, where it comes from and its metrics, one a line."""
    config, facts = trunk.model.config, trunk.facts
    parameters = sum(parameter.numel() for parameter in trunk.model.parameters())
    dtype = str(trunk.model.embed_tokens.weight.dtype).removeprefix("torch.")
    origin = [f"{name} {facts[name]}" for name in ("study", "run", "seed", "commit") if facts.get(name) is not None]
    trained = f"{facts['tokens']:,} tokens" if facts.get("tokens") is not None else "unknown"
    lines = [
        f"{config.shape}, width {config.width}, {config.heads} heads, vocabulary {config.vocab_size:,}",
        f"parameters  {parameters:,} ({dtype})",
        f"digest      {trunk.digest}",
        f"trained     {trained}",
        f"from        {', '.join(origin) or 'unknown'}",
        f"tokenizer   {trunk.tokenizer.identity if trunk.tokenizer else 'none'}",
    ]
    return "\n".join(lines + [f"{name}  {value:.6g}" for name, value in sorted(facts.get("metrics", {}).items())])


def _options(words: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name == "dtype" and value in DTYPES:
            options["dtype"] = value
        elif name == "max-shard-bytes" and value.isdigit() and int(value) > 0:
            options["max_shard_bytes"] = int(value)
        else:
            raise ValueError(f"{word}: must be --dtype={'|'.join(DTYPES)} or --max-shard-bytes=<integer ≥ 1>")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
