"""When the order summaries are due again: all processes agree on it, and it is later when a refresh took long.

Works with the previous release, which goes by `as_of` alone. A refresh under way is waited for; longer ones than the
lock timeout end this migration, which can be run again.
"""

from alembic import op

revision = "0013"
down_revision: str | None = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE orders.summary_refresh ADD COLUMN due_at TIMESTAMPTZ")
    op.execute("COMMENT ON COLUMN orders.summary_refresh.due_at IS 'from then on somebody has to refresh them'")
    op.execute("UPDATE orders.summary_refresh SET due_at = as_of")


def downgrade() -> None:
    op.execute("ALTER TABLE orders.summary_refresh DROP COLUMN due_at")
