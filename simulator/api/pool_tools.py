"""pool.*: updates, telemetry, redo log, licence and other settings (xapi.md 16)."""

from __future__ import annotations

from simulator.api.addresses import is_ip
from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.types import NULL

_LAST_DAY = 6

# -- repositories of updates


@call("pool.add_repository", "&pool", "&Repository")
def add_repository(ctx: Context, pool: Row, repository: Row) -> None:
    """Take updates from a repository, too."""
    with ctx.db as db:
        if repository.ref not in pool["repositories"]:
            db.put(pool, repositories=[*pool["repositories"], repository.ref])


@call("pool.remove_repository", "&pool", "&Repository")
def remove_repository(ctx: Context, pool: Row, repository: Row) -> None:
    """Take no more updates from a repository."""
    with ctx.db as db:
        db.put(pool, repositories=[ref for ref in pool["repositories"] if ref != repository.ref])


@call("Repository.forget", "&Repository")
def repository_forget(ctx: Context, repository: Row) -> None:
    """Forget a repository. Raises REPOSITORY_IS_IN_USE."""
    with ctx.db as db:
        if any(repository.ref in pool["repositories"] for pool in db.rows("pool")):
            raise Failure("REPOSITORY_IS_IN_USE")
        db.delete(repository)


@call("pool.sync_updates", "&pool", "bool", "string?", "string?", returns="string")
def sync_updates(ctx: Context, pool: Row, force: bool, *credentials: str | None) -> str:  # noqa: FBT001 - signature
    """Refuse: NO_REPOSITORIES_CONFIGURED, or REPOSYNC_FAILED since no repository answers."""
    del ctx, force, credentials
    if not pool["repositories"]:
        raise Failure("NO_REPOSITORIES_CONFIGURED")
    raise Failure("REPOSYNC_FAILED")


@call("host.apply_updates", "&host", "string", returns="string**")
def host_apply_updates(ctx: Context, host: Row, digest: str) -> list[list[str]]:
    """Refuse with NO_REPOSITORY_ENABLED: no update was ever synchronised."""
    del ctx, host, digest
    raise Failure("NO_REPOSITORY_ENABLED")


@call("pool.check_update_readiness", "&pool", "bool", returns="string**")
def check_update_readiness(ctx: Context, pool: Row, requires_reboot: bool) -> list[list[str]]:  # noqa: FBT001 - signature
    """Return what keeps updates from being applied: hosts that do not answer."""
    del pool, requires_reboot
    with ctx.db as db:
        dead = [host.ref for host in db.rows("host") if not db.row("host_metrics", host["metrics"])["live"]]
    return [["HOST_NOT_LIVE", ref] for ref in dead]


@call("pool.configure_update_sync", "&pool", "update_sync_frequency", "int")
def configure_update_sync(ctx: Context, pool: Row, frequency: str, day: int) -> None:
    """Choose when to look for updates: every day (0), or on a day of the week. Raises INVALID_UPDATE_SYNC_DAY."""
    if not 0 <= day <= (_LAST_DAY if frequency == "weekly" else 0):
        raise Failure("INVALID_UPDATE_SYNC_DAY", str(day))
    with ctx.db as db:
        db.put(pool, update_sync_frequency=frequency, update_sync_day=day)


@call("pool.set_update_sync_enabled", "&pool", "bool")
def set_update_sync_enabled(ctx: Context, pool: Row, value: bool) -> None:  # noqa: FBT001 - the call's signature
    """Look for updates by the clock, or not. Raises NO_REPOSITORIES_CONFIGURED."""
    with ctx.db as db:
        if value and not pool["repositories"]:
            raise Failure("NO_REPOSITORIES_CONFIGURED")
        db.put(pool, update_sync_enabled=value)


def _replace_secret(ctx: Context, pool: Row, field: str, value: str | None) -> None:
    """Keep a text as a secret that a field of the pool names; None for none. The old one goes."""
    db = ctx.db
    old = db.find("secret", pool[field])
    if old is not None:
        db.delete(old)
    made = NULL
    if value is not None:
        made = db.create("secret", ctx.pool.ids.ref(), {"uuid": ctx.pool.ids.uuid(), "value": value}).ref
    db.put(pool, **{field: made})


@call("pool.configure_repository_proxy", "&pool", "string", "string", "string")
def configure_repository_proxy(ctx: Context, pool: Row, url: str, username: str, password: str) -> None:
    """Reach repositories by a proxy. Raises INVALID_REPOSITORY_PROXY_URL, INVALID_REPOSITORY_PROXY_CREDENTIAL."""
    if not url.startswith(("http://", "https://")):
        raise Failure("INVALID_REPOSITORY_PROXY_URL", url)
    if bool(username) != bool(password):
        raise Failure("INVALID_REPOSITORY_PROXY_CREDENTIAL")
    with ctx.db as db:
        db.put(pool, repository_proxy_url=url, repository_proxy_username=username)
        _replace_secret(ctx, pool, "repository_proxy_password", password or None)


@call("pool.disable_repository_proxy", "&pool")
def disable_repository_proxy(ctx: Context, pool: Row) -> None:
    """Reach repositories directly."""
    with ctx.db as db:
        db.put(pool, repository_proxy_url="", repository_proxy_username="")
        _replace_secret(ctx, pool, "repository_proxy_password", None)


@call("pool.reset_telemetry_uuid", "&pool")
def reset_telemetry_uuid(ctx: Context, pool: Row) -> None:
    """Be somebody else in the maker's statistics."""
    with ctx.db:
        _replace_secret(ctx, pool, "telemetry_uuid", ctx.pool.ids.uuid())


# -- redo log


@call("pool.enable_redo_log", "&SR")
def enable_redo_log(ctx: Context, sr: Row) -> None:
    """Refuse with CANNOT_ENABLE_REDO_LOG: repositories of files can hold none."""
    del ctx
    raise Failure("CANNOT_ENABLE_REDO_LOG", f"SR {sr['uuid']} of type {sr['type']} cannot hold a redo log")


@call("pool.disable_redo_log")
def disable_redo_log(ctx: Context) -> None:
    """Do nothing: it is not enabled."""
    del ctx


# -- licence and access


@call("pool.get_license_state", "&pool", returns="string->string")
def get_license_state(ctx: Context, pool: Row) -> dict[str, str]:
    """Return the lowest edition of the hosts, and that it lasts for ever."""
    del pool
    with ctx.db as db:
        return {"edition": min(host["edition"] for host in db.rows("host")), "expiry": "never"}


@call("pool.set_https_only", "&pool", "bool")
def set_https_only(ctx: Context, pool: Row, value: bool) -> None:  # noqa: FBT001 - the call's signature
    """Mark all hosts as answering https only; they go on answering where they do."""
    del pool
    with ctx.db as db:
        for host in db.rows("host"):
            db.put(host, https_only=value)


@call("pool.enable_client_certificate_auth", "&pool", "string")
def enable_client_certificate_auth(ctx: Context, pool: Row, name: str) -> None:
    """Mark the pool as taking clients' certificates of a name."""
    with ctx.db as db:
        db.put(pool, client_certificate_auth_enabled=True, client_certificate_auth_name=name)


@call("pool.disable_client_certificate_auth", "&pool")
def disable_client_certificate_auth(ctx: Context, pool: Row) -> None:
    """Mark the pool as not taking clients' certificates."""
    with ctx.db as db:
        db.put(pool, client_certificate_auth_enabled=False, client_certificate_auth_name="")


@call("pool.disable_ssl_legacy", "&pool")
def disable_ssl_legacy(ctx: Context, pool: Row) -> None:
    """Switch the old protocols off on all hosts."""
    del pool
    with ctx.db as db:
        for host in db.rows("host"):
            db.put(host, ssl_legacy=False)


@call("pool.rotate_secret")
def rotate_secret(ctx: Context) -> None:
    """Give the hosts a new common secret, which no client sees."""
    del ctx


@call("pool.has_extension", "&pool", "string", returns="bool")
def has_extension(ctx: Context, pool: Row, name: str) -> bool:
    """Return False: no host has extensions."""
    del ctx, pool, name
    return False


# -- network helpers


@call("pool.set_vswitch_controller", "string")
def set_vswitch_controller(ctx: Context, address: str) -> None:
    """Name the controller of the virtual switches; empty for none. Raises INVALID_IP_ADDRESS_SPECIFIED."""
    if address and not is_ip(address):
        raise Failure("INVALID_IP_ADDRESS_SPECIFIED", "address")
    with ctx.db as db:
        db.put(ctx.pool.pool_row, vswitch_controller=address)


@call("pool.send_test_post", "string", "int", "string", returns="string")
def send_test_post(ctx: Context, host: str, port: int, body: str) -> str:
    """Refuse with TLS_CONNECTION_FAILED: the simulator speaks to nobody."""
    del ctx, body
    raise Failure("TLS_CONNECTION_FAILED", host, str(port))
