"""Teams: a name and what all of its callers together may use."""

import json
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from routing.accounts import set_budgets
from routing.budgets import Budget
from routing.store import KEYS, TEAMS, changing


def create_team(engine: Engine, name: str, limits: Sequence[Budget]) -> bool:
    """Makes a team. False where there is one of that name."""
    try:
        with changing(engine, "keys") as connection:
            connection.execute(insert(TEAMS).values(name=name, limits=_text(limits), created_at=time.time()))
            set_budgets(connection, "team", name, limits)
    except IntegrityError:
        return False
    return True


def set_team(engine: Engine, name: str, limits: Sequence[Budget]) -> bool:
    """Gives a team other limits; what it has spent stays spent. False where there is no such team."""
    with changing(engine, "keys") as connection:
        done = connection.execute(update(TEAMS).where(TEAMS.c.name == name).values(limits=_text(limits)))
        if done.rowcount:
            set_budgets(connection, "team", name, limits)
    return bool(done.rowcount)


def listed_teams(engine: Engine) -> list[dict[str, Any]]:
    """All teams with their limits and callers."""
    with engine.connect() as connection:
        rows = connection.execute(select(TEAMS).order_by(TEAMS.c.name)).all()
        members = connection.execute(select(KEYS.c.team, KEYS.c.caller).where(KEYS.c.revoked_at.is_(None)).distinct()).all()
    return [{"name": row.name, "limits": json.loads(row.limits), "created_at": row.created_at,
             "callers": sorted(caller for team, caller in members if team == row.name)} for row in rows]  # fmt: skip


def _text(limits: Sequence[Budget]) -> str:
    return json.dumps([str(limit) for limit in limits])
