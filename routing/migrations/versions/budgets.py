"""Accounts, and what workers hold of them."""

import sqlalchemy as sa
from alembic import op

revision = "budgets"
down_revision = "limits"


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "accounts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        *(sa.Column(name, sa.String, nullable=False) for name in ("kind", "scope", "unit", "every")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("most", "spent", "held", "since")),
        sa.UniqueConstraint("kind", "scope", "unit", "every"),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("flushed", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.Float),
    )
    op.create_table(
        "allotments",
        sa.Column("lease", sa.String, primary_key=True),
        sa.Column("account", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("held", sa.BigInteger, nullable=False),
    )
