"""The token by which the machines and drivers of a Ray cluster know each other."""

from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)


def use_token() -> None:
    """Show a token that is there to whatever cluster is joined next.

    Ray itself would do so for the address "auto" only. It is found the way Ray finds it:
    RAY_AUTH_TOKEN, a file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token.
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
