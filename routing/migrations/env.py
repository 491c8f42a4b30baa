"""Alembic's entry: runs migrations on the connection that `store` opened, inside its transaction and under its lock."""

from alembic import context

from routing.store import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
