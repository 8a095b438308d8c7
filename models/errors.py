"""The one exception that the command line turns into a single line and exit code 2."""


class UserError(ValueError):
    """A mistake of the user's, told in one line: the rule, the values, the remedy."""


def check_multiple(name: str, value: int, of: str, base: int, otherwise: str = "") -> None:
    """Raise UserError unless `value` is a multiple of `base`; `otherwise` ends the remedy."""
    if value % base:
        raise UserError(
            f"{name}={value} must be a multiple of {of}={base}; "
            f"choose {of} that divides it{otherwise}"
        )
