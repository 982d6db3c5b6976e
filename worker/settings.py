"""Every setting: name, type, unit, default.

Read, first found wins, from the environment (`VMOPS_LEASE_TTL_S=20`, nested with two underscores:
`VMOPS_POOLS__LAB__URL=...`), then from the file that `VMOPS_CONFIG` names (default `vmops.toml` in the working folder).
Secrets come from files: `password_file`, `image_store_token_file`, `secret_key_file`.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from worker.errors import UnknownPool

Seconds = Annotated[float, Field(gt=0)]
SecondsOrOff = Annotated[float, Field(ge=0)]
#: A call of the plugin in dom0 takes whole seconds, and a minute at most.
AgentSeconds = Annotated[int, Field(ge=1, le=60)]
Provider = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


def _read_secret(path: Path) -> SecretStr:
    return SecretStr(path.read_text(encoding="utf-8").strip())


_REDIS = re.compile(r"rediss?://(.*@)?(\[[\da-fA-F:.]+\]|[^@/:\[\]]*)(:\d+)?(/\d*)?(\?.*)?|unix://.+")
_RABBITMQ = re.compile(r"(py)?amqps?://.+")


def _redis_url(url: str) -> str:
    """Refuse what is no Redis; the error does not repeat it, because it may hold a password."""
    if not _REDIS.fullmatch(url):
        raise ValueError("should be like redis://host:6379/0 (rediss:// for TLS, unix:// for a socket)")
    return url


def _broker_url(url: str) -> str:
    """Refuse what is neither a Redis nor a RabbitMQ."""
    if not _RABBITMQ.fullmatch(url) and not _REDIS.fullmatch(url):
        raise ValueError("should be like redis://host:6379/0 (rediss:// for TLS) or amqp://user:password@host//")
    return url


def _next_database(url: str) -> str:
    """Return the same Redis with the database number one higher, so that wiping the broker leaves the journal alone."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        query = dict(parse_qsl(parts.query))
        query["db"] = str(int(query.get("db") or 0) + 1)
        return urlunsplit(parts._replace(query=urlencode(query)))
    database = int(parts.path.strip("/") or 0) + 1
    return urlunsplit(parts._replace(path=f"/{database}"))


class AgentBuild(BaseModel):
    """One version of the guest agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(pattern=r"^[0-9]+(\.[0-9]+)*$", description="What the agent says when it is asked.")
    url: str = Field(
        pattern=r"^(https?|ftp)://[!-+\--~]+$", description="Where the guest finds it; no blanks, no commas."
    )
    md5sum: str = Field(pattern=r"^[0-9a-fA-F]{32}$", description="MD5 of what is there, 32 hex digits.")


class PoolSettings(BaseModel):
    """One XenServer or XCP-ng pool."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="Address of the pool master, http:// or https://.")
    members: list[str] = Field(default=[], description="Addresses of other members, tried when the master is gone.")
    username: str = Field(default="root", description="XAPI user name.")
    password: SecretStr | None = Field(default=None, description="XAPI password; prefer password_file.")
    password_file: Path | None = Field(default=None, description="File holding the XAPI password.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authority that signed the pool's certificates."
    )
    fingerprints: list[str] = Field(default=[], description="SHA-256 fingerprints (hex) of the certificates to trust.")
    originator: str = Field(default="vmops", description="Session originator; XAPI keeps 500 sessions for each.")
    firewall: Literal["auto", "ovs", "bridge", "xapi-lock", "none"] = Field(
        default="auto", description="What enforces security groups; auto: what each host can do."
    )
    max_connections: int = Field(default=8, ge=1, le=100, description="Connections of one worker process to the pool.")
    max_builds: int = Field(
        default=32,
        ge=1,
        le=150,
        description="VMs being built at a time; more wait their turn. XAPI forgets ended tasks when it has over 200.",
    )
    connect_timeout_s: Seconds = Field(default=10, description="Time to connect.")
    call_timeout_s: Seconds = Field(
        default=180, description="Time for one synchronous call; XAPI itself may wait long."
    )
    first_byte_timeout_s: Seconds = Field(default=600, description="Time until an export's first byte.")
    stream_timeout_s: Seconds = Field(default=90, description="Longest pause inside a transfer.")

    @model_validator(mode="after")
    def _fill_password(self) -> PoolSettings:
        if self.password is None and self.password_file is not None:
            self.password = _read_secret(self.password_file)
        if self.password is None:
            raise ValueError("give password_file (or password)")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        if self.url.startswith("https://") and not (self.ca_file or self.fingerprints):
            raise ValueError("an https:// pool needs ca_file, or the SHA-256 of its certificate in fingerprints")
        return self


class Settings(BaseSettings):
    """All settings of one deployment. Times are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="VMOPS_", env_nested_delimiter="__", extra="forbid")

    broker_url: Annotated[str, AfterValidator(_broker_url)] = Field(
        default="redis://127.0.0.1:6379/0", description="Celery broker: redis://, rediss:// or amqp://."
    )
    journal_url: Annotated[str, AfterValidator(_redis_url)] | None = Field(
        default=None, description="Redis of the journal; default: the broker's server, next database."
    )
    journal_prefix: str = Field(default="vmops", description="Prefix of every key in the journal's Redis.")
    state_dir: Path = Field(default=Path("~/.local/state/vmops"), description="Files of the embedded servers.")
    pools: dict[PoolName, PoolSettings] = Field(default={}, description="The pools, by name.")

    image_store: str = Field(default="", description="file:///dir, glance+http(s)://host:port, or cloud:NAME.")
    image_store_token: SecretStr | None = Field(default=None, description="Static token for Glance.")
    image_store_token_file: Path | None = Field(default=None, description="File holding a static token for Glance.")
    image_store_ca_file: Path | None = Field(
        default=None, description="PEM file of the authority that signed Glance's certificate."
    )
    image_wedged_after_s: Seconds = Field(
        default=7200, description="An image `saving` longer than this, not by us, is wedged."
    )

    image_fetch_deadline_s: Seconds = Field(
        default=3 * 3600, description="Longest wait for an image that another operation fetches into the same storage."
    )

    max_kernel_ramdisk_size: int = Field(
        default=16 << 20, ge=1, le=256 << 20, description="Largest kernel or ramdisk of a paravirtual guest, bytes."
    )
    default_ephemeral_format: Literal["ext4", "none"] = Field(
        default="ext4", description="File system of ephemeral disks, made by mke2fs; Windows guests get blank ones."
    )

    secret_key_file: Path | None = Field(
        default=None, description="Private key (64 hex digits) that opens sealed secrets."
    )
    allow_secrets_in_clear: bool = Field(default=False, description="Accept secret fields that were not sealed.")

    lease_ttl_s: Seconds = Field(
        default=30, description="Execution lease of one delivery; renewed at a third of it, at least every 2 s."
    )
    submit_grace_s: Seconds = Field(
        default=20, description="Time a submitted chain may take to be delivered before it is sent again."
    )
    watch_interval_s: Seconds = Field(
        default=1, description="Pause between two looks at a pool that has waiting operations."
    )
    reconcile_interval_s: Seconds = Field(default=5, description="Pause between two passes of the reconciler.")
    max_attempts: int = Field(
        default=20, ge=1, description="Deliveries of one step that may end without a word (killed workers)."
    )
    step_deadline_s: Seconds = Field(default=6 * 3600, description="Time for the retries of one step.")
    undo_deadline_s: Seconds = Field(
        default=24 * 3600, description="Time for the retries of one undo before it is stuck."
    )
    retry_delay_s: Seconds = Field(
        default=1, description="First delay between two tries of a step; doubles, with jitter."
    )
    retry_delay_max_s: Seconds = Field(default=60, description="Longest delay between two tries of a step.")
    operation_retention_s: Seconds = Field(
        default=7 * 86400, description="Life of a finished operation in the journal."
    )
    progress_interval_s: Seconds = Field(default=1, description="Least pause between two progress reports of a step.")

    coalesce_budget_s: Seconds = Field(
        default=6 * 3600, description="Longest wait for the storage to coalesce; then the longer chain is exported."
    )
    coalesce_check_s: Seconds = Field(
        default=300, description="Full look at a coalescing chain, beside the watcher's events."
    )

    soft_timeout_s: Seconds = Field(
        default=300, description="Time that a soft reboot gives the guest; XAPI itself gives up after 1200."
    )

    work_dir: Path = Field(
        default=Path("/var/tmp/vmops"),  # noqa: S108 - made with mode 0700
        description="Folder of a worker for disks on their way to a smaller flavor; as large as these, sparse.",
    )

    poll_interval_s: Seconds = Field(
        default=60,
        description="Pause between two looks of each poller below at each pool; and before an operation of theirs that "
        "has failed is submitted anew, doubled each time.",
    )
    reboot_timeout_s: SecondsOrOff = Field(
        default=0, description="A SOFT reboot that takes longer becomes a HARD one; 0: never."
    )
    rescue_timeout_s: SecondsOrOff = Field(default=0, description="A rescue that lasts longer is ended; 0: never.")
    resize_confirm_window_s: SecondsOrOff = Field(
        default=0, description="A resize that is neither confirmed nor reverted in this time is confirmed; 0: never."
    )

    orphan_interval_s: SecondsOrOff = Field(
        default=6 * 3600, description="Pause between two sweeps of a pool by poll_orphans; 0: none."
    )
    orphan_clean: bool = Field(
        default=False, description="Sweeps destroy what is proven to be left over, rather than only report it."
    )
    orphan_grace_s: float = Field(
        default=86400, ge=0, description="What is left over for less than so long is not destroyed."
    )
    image_unused_s: SecondsOrOff = Field(
        default=30 * 86400, description="Cached images unused for so long are left over; 0: they are kept for ever."
    )

    use_agent_default: bool = Field(
        default=False, description="Set guests up by their agent when neither request nor image says whether."
    )
    agent_provider: Provider | None = Field(
        default=None,
        description="What new guests read at vm-data/provider_data/provider; nova-agent ends unless it is rackspace.",
    )
    disable_agent: bool = Field(default=False, description="Never speak to an agent after a build.")
    agent_timeout_s: AgentSeconds = Field(default=30, description="Time for an agent to answer one question.")
    agent_resetnetwork_timeout_s: AgentSeconds = Field(
        default=60, description="Time for an agent to set the network up."
    )
    agent_version_timeout_s: Seconds = Field(
        default=300, description="Time for an agent's first answer after a boot; it is asked again and again."
    )
    agent_builds: dict[Literal["linux", "windows"], AgentBuild] = Field(
        default={}, description="The agent that a build installs where an older one runs, by the guest's os_type."
    )

    firewall_interval_s: Seconds = Field(
        default=2, description="Pause between two looks at what happens to VMs in security groups; one call each."
    )
    firewall_verify_s: Seconds = Field(
        default=60, description="A host is asked this often whether its rules are still enforced."
    )

    console_session_s: Seconds = Field(
        default=300, description="Life of the session that get_vnc_console gives away; an open console stays open."
    )

    domain_poll_interval_s: Seconds = Field(
        default=30, description="Pause between two looks at which domains VMs have: a halted one's log is found by it."
    )

    visibility_timeout_s: Seconds = Field(
        default=60, description="Redis transport: redelivery of a dead worker's messages."
    )
    atomic_claim: bool = Field(default=True, description="Redis transport: claim messages atomically (worker.broker).")

    @model_validator(mode="after")
    def _derive(self) -> Settings:
        if self.image_store_token is None and self.image_store_token_file is not None:
            self.image_store_token = _read_secret(self.image_store_token_file)
        if self.journal_url is None:
            if _RABBITMQ.fullmatch(self.broker_url):
                raise ValueError("journal_url must name a Redis when broker_url is not one")
            self.journal_url = _next_database(self.broker_url)
        self.state_dir = self.state_dir.expanduser()
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file; no dotenv."""
        del dotenv_settings, file_secret_settings
        path = Path(os.environ.get("VMOPS_CONFIG", "vmops.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    def pool(self, name: str | None) -> tuple[str, PoolSettings]:
        """Return the pool called `name`, or the only one when `name` is None. Raises UnknownPool."""
        known = ", ".join(sorted(self.pools)) or "none"
        if name is None:
            if len(self.pools) != 1:
                raise UnknownPool(f"Name the pool: {len(self.pools)} are configured ({known}).")
            name = next(iter(self.pools))
        if name not in self.pools:
            raise UnknownPool(f"No pool is called {name!r}; configured: {known}.")
        return name, self.pools[name]


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the process's settings, read once, at first use."""
    return Settings()
