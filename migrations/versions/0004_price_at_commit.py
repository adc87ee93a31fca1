"""The version of a product beside its stock, so that a placement notices a change of price before it commits.

Works with the previous release: it neither reads nor writes the column, which begins at 0, older than any product.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE orders.inventory ADD COLUMN product_version BIGINT NOT NULL DEFAULT 0")
    op.execute(
        "COMMENT ON COLUMN orders.inventory.product_version IS"
        " 'of the product as last copied: a placement that has read an older one starts again'"
    )
    op.execute("GRANT SELECT, UPDATE (product_version) ON orders.inventory TO orders_projector")


def downgrade() -> None:
    op.execute("REVOKE ALL ON orders.inventory FROM orders_projector")
    op.execute("ALTER TABLE orders.inventory DROP COLUMN product_version")
