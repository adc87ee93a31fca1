"""Under which account a server runs that refuses to run as root."""

import os
import pwd
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.embedded.errors import StackError

_READ_SEARCH, _OVERRIDE = 2, 1  # bits of CAP_DAC_READ_SEARCH and CAP_DAC_OVERRIDE, capabilities(7)


@dataclass(frozen=True)
class Account:
    """An unprivileged user, seen from root."""

    uid: int
    gid: int

    @classmethod
    def owning(cls, directory: Path) -> "Account | None":
        """Whoever owns `directory`, so that a stack first started by a user is not taken from them.

        `nobody` when that is root or the directory does not exist; None when we are not root and have no choice.
        """
        if os.geteuid() != 0:
            return None
        if directory.exists() and (owner := directory.stat()).st_uid != 0:
            return cls(owner.st_uid, owner.st_gid)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise StackError(
                "PostgreSQL refuses to run as root, and there is no user `nobody`", "Start as another user."
            ) from None
        return cls(nobody.pw_uid, nobody.pw_gid)

    def own(self, path: Path) -> None:
        """`path` itself, not what is in it, belongs to the account."""
        os.chown(path, self.uid, self.gid)

    def reaches(self, path: Path) -> bool:
        """Every directory above `path` lets the account through; access lists are not looked at."""
        return all(
            status.st_mode & (0o100 if status.st_uid == self.uid else 0o010 if status.st_gid == self.gid else 0o001)
            for status in (parent.stat() for parent in path.resolve().parents)
        )


def launch(
    account: Account | None, argv: Iterable[str], must_reach: Iterable[Path]
) -> tuple[list[str], dict[str, Any]]:
    """Command and arguments of `Popen` that run `argv` as the account, also where only root could get through.

    A checkout below /root is shut to everybody else. Opening a person's directories is not ours to do, so the child
    keeps the one capability that reads and searches past permissions; it still owns nothing but its own directory.
    """
    command = list(argv)
    if account is None:
        return command, {}
    if all(account.reaches(path) for path in must_reach):
        return command, {"user": account.uid, "group": account.gid, "extra_groups": []}
    setpriv, capability = shutil.which("setpriv"), _capability()
    if setpriv is None or capability is None:
        raise StackError(
            f"{command[0]} cannot run as user {account.uid}, which may not enter the directories above it or its data",
            "Start as another user than root, or use a checkout and ORDERS_HOME that everybody may enter.",
        )
    # initdb asks access(2) for its siblings, which forgets capabilities of users unless this bit says they stay.
    ids = ["--securebits=+no_setuid_fixup", "--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups"]
    return [setpriv, *ids, f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}", "--", *command], {}


def _capability() -> str | None:
    """The smallest capability we may pass on that gets a process through closed directories."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:")), 0)
    if held >> _READ_SEARCH & 1:
        return "dac_read_search"
    return "dac_override" if held >> _OVERRIDE & 1 else None  # containers often drop the first
