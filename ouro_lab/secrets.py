"""What must not be written down: values that look like credentials, in anything a run records or prints of itself."""

import os
import re

SECRET = re.compile(r"(_|\b)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)(_|\b)", re.I)
LEAST = 8  # characters: shorter ones are words and numbers
HIDDEN = "***"

_LOGIN = re.compile(r"(://[^/\s:@]*):[^@\s/]+@")
_KNOWN = re.compile(
    r"\b(hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|AKIA[A-Z0-9]{16}"
    r"|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a credential."""
    return SECRET.search(name) is not None


def redact(text: str) -> str:
    """`text` without the passwords of its addresses, known kinds of tokens, and this process's own credentials."""
    for name, value in os.environ.items():
        if len(value) >= LEAST and not value.isdigit() and value in text and is_secret(name):
            text = text.replace(value, HIDDEN)
    return _KNOWN.sub(HIDDEN, _LOGIN.sub(rf"\1:{HIDDEN}@", text))
