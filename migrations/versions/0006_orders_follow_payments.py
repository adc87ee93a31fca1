"""orders-projector carries out what payments say, orders-maintenance expires what nobody has paid.

Works with the previous release: it does neither.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ROLES = "orders_projector, orders_maintenance"
# As far as a step needs: lock and change the order and its lines, append an event, move stock. Columns one by one where
# the role has no business with the others; the events stay append-only.
GRANTS = (
    "SELECT, UPDATE ON orders.orders",
    "SELECT, UPDATE ON orders.order_items",
    "SELECT, INSERT ON orders.order_events",
    "INSERT ON orders.outbox",
    "SELECT, UPDATE (on_hand, reserved, version) ON orders.inventory",
)
# What orders_projector has had since 0003 and 0004.
KEPT = "SELECT ON orders.inventory"


def upgrade() -> None:
    for grant in GRANTS:
        op.execute(f"GRANT {grant} TO {ROLES}")


def downgrade() -> None:
    for grant in GRANTS:
        op.execute(f"REVOKE {grant} FROM {ROLES}")
    op.execute(f"GRANT {KEPT} TO orders_projector")
