"""What payments-worker answers."""

from typing import Literal

from pydantic import BaseModel


class CallbackAnswer(BaseModel):
    """The callback was taken: the provider need not send it again."""

    status: Literal["ok"]
