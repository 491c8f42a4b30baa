"""Teams, what callers may use, and what the ledger says about cost, runs, labels and the rules in force."""

import sqlalchemy as sa
from alembic import op

revision = "limits"
down_revision = "first"


def _text(name: str, default: str = "") -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False, server_default=default)


def upgrade() -> None:
    """Adds the columns and tables; rows that exist get the defaults."""
    for column in (_text("team"), _text("default_class"), _text("max_class"), _text("limits", "[]")):
        op.add_column("keys", column)
    for name in ("team", "run_id", "data_class", "zone"):
        op.add_column("ledger", _text(name))
    for name in ("cost_nanousd", "gpu_ms"):
        op.add_column("ledger", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    for name in ("policy_hash", "config_version"):
        op.add_column("ledger", _text(name))
    op.create_table("teams", sa.Column("name", sa.String, primary_key=True), _text("limits", "[]"),
                    sa.Column("created_at", sa.Float, nullable=False))  # fmt: skip
    op.create_table("versions", sa.Column("name", sa.String, primary_key=True),
                    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"))  # fmt: skip
