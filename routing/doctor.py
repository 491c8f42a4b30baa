"""What `inhouse doctor` looks at of the router: its two files, its policies, and whether it answers. Changes nothing."""

from collections.abc import Callable, Iterator

import click

from routing.cli import checked_site, is_up, readiness
from routing.policy_cli import policy_of
from routing.settings import Settings

Check = tuple[str, Callable[[], str]]
WRONG = (click.ClickException,)


def checks(settings: Settings, *, is_started: bool) -> Iterator[Check]:
    """(what, check) for the router of these settings; it must answer where its house `is_started`. Checks raise `WRONG` or OSError."""
    yield "routes.yaml", lambda: f"{len(checked_site(settings).tasks)} tasks"
    yield "policies", lambda: f"{len(policy_of(settings).rules)} rules"
    if is_started or is_up(settings):
        yield "router", lambda: _router(settings)


def _router(settings: Settings) -> str:
    state, where = readiness(settings), f"http://{settings.host}:{settings.port}"
    if not state:
        raise click.ClickException(f"does not answer at {where}; start it again: inhouse down && inhouse up")
    if missing := sorted(task for task, is_ready in state["tasks"].items() if not is_ready):
        raise click.ClickException(f"answers at {where}, and no model does for: {', '.join(missing)}; see `inhouse status` and its logs")
    return f"ready at {where}"
