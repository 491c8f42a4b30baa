"""Keys for batch work, and when runs ended."""

import time

import sqlalchemy as sa
from alembic import op

revision = "ends"
down_revision = "runs"


def upgrade() -> None:
    """Adds the columns; what was stopped before counts as stopped now."""
    op.add_column("keys", sa.Column("batch", sa.Integer, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("ended_at", sa.Float))
    op.execute(sa.text("UPDATE runs SET ended_at = :now WHERE state = 'stopped'").bindparams(now=time.time()))
