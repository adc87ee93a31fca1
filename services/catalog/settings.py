"""Settings of catalog-api."""

from services.common.settings import ApiSettings


class CatalogSettings(ApiSettings):
    """What catalog-api may be told."""
