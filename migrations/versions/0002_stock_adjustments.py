"""Stock adjustments over HTTP: grants of orders-api, the turn of a key, and what is always true of a movement.

Works with the previous release: it neither adjusts nor writes movements but for openings, which the CHECKs let pass.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CHECKS = {
    "version": "version >= 1",
    "key": "char_length(key) BETWEEN 1 AND 255",
    "reason": "char_length(reason) BETWEEN 1 AND 200",
}
COMMENT = "adjustments of stock by hand{}; orders'' effects are in their events"

# A function, so that the context of a lock timeout names it. The unique key is what makes an adjustment happen once;
# keys with the same hash only wait for each other.
TURN = r"""
CREATE FUNCTION orders.take_adjustment_turn(product_id UUID, subject TEXT, key TEXT) RETURNS BOOLEAN LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(concat_ws(' ', product_id, key, subject), 0));
    RETURN TRUE;
END $$
"""


def upgrade() -> None:
    # Scanned under its lock: until now the table has at most an opening a product.
    for name, condition in CHECKS.items():
        op.execute(
            f"ALTER TABLE orders.inventory_movements ADD CONSTRAINT ck_inventory_movements_{name} CHECK ({condition})"
        )
    op.execute(f"COMMENT ON TABLE orders.inventory_movements IS '{COMMENT.format(', and their idempotency keys')}'")
    op.execute(TURN)
    op.execute(
        "COMMENT ON FUNCTION orders.take_adjustment_turn IS"
        " 'nobody else adjusts this product with this key until the transaction ends'"
    )
    op.execute("GRANT INSERT ON orders.inventory TO orders_api")
    op.execute("GRANT SELECT, INSERT ON orders.inventory_movements TO orders_api")


def downgrade() -> None:
    op.execute("REVOKE SELECT, INSERT ON orders.inventory_movements FROM orders_api")
    op.execute("REVOKE INSERT ON orders.inventory FROM orders_api")
    op.execute("DROP FUNCTION orders.take_adjustment_turn")
    op.execute(f"COMMENT ON TABLE orders.inventory_movements IS '{COMMENT.format('')}'")
    for name in CHECKS:
        op.execute(f"ALTER TABLE orders.inventory_movements DROP CONSTRAINT ck_inventory_movements_{name}")
