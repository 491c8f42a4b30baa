"""Runs, and the secret that signs their ids."""

import sqlalchemy as sa
from alembic import op

revision = "runs"
down_revision = "budgets"


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String, primary_key=True),
        *(sa.Column(name, sa.String, nullable=False) for name in ("parent", "caller", "state", "reason", "stopped_by", "limits")),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("deadline", sa.Float),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("fanout", sa.Integer, nullable=False),
        sa.Column("data_class", sa.String, nullable=False),
        sa.Column("raised", sa.Integer, nullable=False),
        sa.Index("runs_parent", "parent"),
    )
    op.create_table("secrets", sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False))
