"""Runs that are long over leave the database with their accounts; what their calls cost stays in the ledger.

Only whole trees leave: a run that may still be asked for, or raised, needs all above it, and whoever looks at it wants all below.
"""

from itertools import islice

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, or_, select

from routing.runs import generations
from routing.store import ACCOUNTS, RUNS, changing

_AT_ONCE = 50  # trees in one transaction: it keeps calls waiting that want to write


def prune_runs(engine: Engine, before: float) -> int:
    """Takes out all trees whose runs were all stopped, or had their time, before that (Unix seconds). Returns how many runs that were."""
    with engine.connect() as connection:
        roots = iter(connection.execute(select(RUNS.c.id).where(RUNS.c.parent == "", _is_over(before))).scalars().all())
    pruned = 0
    while some := list(islice(roots, _AT_ONCE)):
        with changing(engine, "runs") as connection:
            pruned += sum(_prune(connection, root, before) for root in some)
    return pruned


def _is_over(before: float) -> ColumnElement[bool]:
    return or_(and_(RUNS.c.state != "open", RUNS.c.ended_at < before), RUNS.c.deadline < before)


def _prune(connection: Connection, root: str, before: float) -> int:
    """Nothing where a run of the tree lives, or something is still held for one."""
    ids = [one for generation in generations(connection, root) for one in generation]
    tree = RUNS.c.id.in_(ids)
    over = connection.execute(select(RUNS.c.id).where(tree, _is_over(before)).order_by(RUNS.c.id).with_for_update()).all()
    mine = ACCOUNTS.c.kind == "run", ACCOUNTS.c.scope.in_(ids)
    held = connection.execute(select(ACCOUNTS.c.held).where(*mine).order_by(ACCOUNTS.c.id).with_for_update()).scalars().all()
    if len(over) < len(ids) or any(held):
        return 0
    connection.execute(delete(ACCOUNTS).where(*mine))
    connection.execute(delete(RUNS).where(tree))
    return len(ids)
