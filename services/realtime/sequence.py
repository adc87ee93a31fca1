"""The order of one order's events for one subscriber. Pure: no clock, no I/O."""


class Sequence:
    """What a subscriber has had: versions up to `last`, each once, in order. `behind`: more is to be fetched.

    Nothing is kept while it is behind. An event that comes live was committed before, so a page that is fetched after
    it has it: only how far the pages must go is remembered.
    """

    __slots__ = ("_known", "behind", "last")

    def __init__(self, last: int, *, behind: bool) -> None:
        self.last = last
        self.behind = behind
        self._known = last  # the highest version that is known to exist

    def live(self, version: int) -> bool:
        """Whether `version`, come by the live feed, is to be sent now. Seen ones are not; a gap puts it behind.

        Nothing is while it is behind: before its first page nobody has said that the subscriber may see it.
        """
        if version == self.last + 1 and not self.behind:
            self.last = version
            return True
        self.missed(version)
        return False

    def missed(self, version: int) -> None:
        """`version` is known to exist, and cannot be sent now."""
        if version > self.last:
            self._known = max(self._known, version)
            self.behind = True

    def fetched(self, version: int) -> None:
        """`version`, from a page, is sent now. ValueError when it is not the next: the page leaves one out."""
        if version != self.last + 1:
            raise ValueError(f"version {version} came after {self.last}")
        self.last = version

    def fetched_all(self) -> None:
        """The last page there was is through. It stays behind when something newer was seen meanwhile."""
        self.behind = self.last < self._known
