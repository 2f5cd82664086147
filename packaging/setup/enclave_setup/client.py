"""How the package client is set up: what a user told pip about the network holds for uv too. Pure."""

from __future__ import annotations

from collections.abc import Mapping

# pip's option -> the variable that tells uv the same. An extra index is left out on purpose: uv asks it first.
_SAME = {
    "index-url": "UV_DEFAULT_INDEX",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
# If one of these is set, the user has told uv already.
_ALREADY_SAID = {"UV_DEFAULT_INDEX": ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")}


def pip_settings(listing: str) -> dict[str, str]:
    """What `pip config list` prints, as option -> value; later lines, which pip ranks higher, win."""
    settings: dict[str, str] = {}
    ranked = sorted(listing.splitlines(), key=lambda line: line.startswith(":env:"))
    for line in ranked:
        key, separator, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if separator and section in {"global", "install", "user", "site", ":env:"}:
            settings[option] = value.strip().strip("'\"")
    return settings


def uv_environment(pip: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to `environment` so that uv reaches what pip reaches; a variable that is set stays."""
    added: dict[str, str] = {}
    for option, variable in _SAME.items():
        said = _ALREADY_SAID.get(variable, (variable,))
        if pip.get(option) and not any(environment.get(name) for name in said):
            value = pip[option].split()[0] if option != "trusted-host" else " ".join(pip[option].split())
            added.setdefault(variable, value)
    return added
