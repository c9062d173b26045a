"""Settings of Earth Engine: account, quota, and what is asked for."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from cropray.config.section import Section


class EarthEngineConfig(Section):
    """On whose account Earth Engine is asked, and how much at a time.

    `project`: else EE_PROJECT or GOOGLE_CLOUD_PROJECT. `service_account_key`: path of a key file,
    else EE_SERVICE_ACCOUNT_KEY, else the default credentials. `url`: another address of the service;
    one of this machine needs no credentials. A request has `deadline_s` for its answer, and
    `attempts` at it; the service itself gives a computation up after five minutes. The published
    quota of a project is 40 requests in flight and 100 a second.

    `assumed_eecu_s` (EECU-seconds of a megapixel and month, both sensors) and `assumed_request_s`
    (seconds of a whole request) are guesses for what an export will take; what it took stands in the
    Cloud console by `workload_tag`.
    """

    project: str = ""
    service_account_key: str = ""
    endpoint: Literal["standard", "high_volume"] = "standard"
    url: str = ""
    in_flight: int = Field(20, ge=1, le=1000)
    per_second: float = Field(50.0, gt=0)
    deadline_s: float = Field(360.0, gt=0)
    attempts: int = Field(8, ge=1)
    workload_tag: str = Field("cropray", pattern=r"^[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?$")
    eucropmap_year: Literal[2018, 2022] = 2018
    assumed_eecu_s: float = Field(20.0, gt=0)
    assumed_request_s: float = Field(20.0, gt=0)

    @property
    def lease_s(self) -> float:
        """After how long a request that was not reported is taken for lost with its worker."""
        return self.deadline_s + 60

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")

    @field_validator("url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/\s]+/?", value):
            raise ValueError(
                f"{value!r} is no address; wanted one like http://127.0.0.1:8080, without a path"
            )
        return value.rstrip("/")

    @field_validator("service_account_key", mode="before")
    @classmethod
    def _a_path(cls, value: Any) -> Any:
        """A key in place of its path is not repeated in a message."""
        return "<a key>" if isinstance(value, dict) or "{" in str(value) else value

    @field_validator("service_account_key")
    @classmethod
    def _no_key(cls, value: str) -> str:
        if value == "<a key>":
            raise ValueError("give the path of the key's file, not the key")
        return value
