"""Entity tags, and requests that depend on them (RFC 9110, sections 8.8.3 and 13.1)."""

import hashlib
import re


def if_match_version(header: str | None) -> int | None:
    """The version in `If-Match` (RFC 9110, section 13.1.1), None without one; -1, which none is, for any other tag."""
    if header is None:
        return None
    match = re.fullmatch(r'"([1-9][0-9]{0,8})"', header.strip())
    return int(match[1]) if match else -1


def none_match(header: str | None, version: int) -> bool:
    """Whether `If-None-Match` (RFC 9110, section 13.1.2, weak comparison) holds a tag other than the version's."""
    return if_changed(header, etag(version))


def if_changed(header: str | None, tag: str) -> bool:
    """Whether `If-None-Match` names neither this entity tag nor any."""
    if header is None:
        return True
    if header == tag:  # as nearly every client sends it
        return False
    tags = {one.strip().removeprefix("W/") for one in header.split(",")}
    return "*" not in tags and tag not in tags


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"{version}"'


def etag_of(body: bytes) -> str:
    """The entity tag of what has no version: a digest of its bytes."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'
