"""secret.introduce, subject.*, role.* and the switches of external authentication (xapi.md 16.4).

Every session here is root's, which may do everything: subjects and roles are kept, and nothing is decided by them.
"""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.model.words import words

POOL_ADMIN_REF = "OpaqueRef:0165f154-ba3e-034e-6b27-5d271af109ba"
#: The roles of every pool, the least powerful first: name, uuid, what it is for, what it may do beyond those before it.
#: A real pool has some two thousand permissions; these stand for them.
_ROLES = (
    ("read-only", "7233b8e3-eacb-d7da-2c95-f2e581cdbf4e", "Looks, and changes nothing",
     "event.from host.get_record session.logout sr.get_record task.get_record vdi.get_record vm.get_record"),
    ("vm-operator", "fb8d4ff9-310c-a959-0613-54101535d3d5", "Starts and stops VMs, and uses their consoles",
     "vbd.eject vbd.insert vm.clean_reboot vm.clean_shutdown vm.hard_reboot vm.hard_shutdown vm.pause vm.start"),
    ("vm-admin", "aaa00ab5-7340-bfbc-0d1b-7cf342639a6e", "Makes, changes and removes VMs and their disks",
     "vbd.create vdi.create vdi.destroy vif.create vm.clone vm.copy vm.create vm.destroy vm.snapshot"),
    ("vm-power-admin", "7955168d-7bec-10ed-105f-c6a7e6e63249", "Does to VMs what touches their hosts",
     "vm.checkpoint vm.migrate_send vm.pool_migrate vm.resume_on vm.revert vm.start_on vm.suspend"),
    ("pool-operator", "b9ce9791-0604-50cd-0649-09b3284c7dfd", "Cares for hosts, storage and networks",
     "host.disable host.enable host.evacuate host.reboot network.create pbd.create pif.scan sr.create sr.destroy"),
    ("pool-admin", "0165f154-ba3e-034e-6b27-5d271af109ba", "Does everything, and says who may do what",
     "host.call_plugin pool.designate_new_master pool.eject subject.add_to_roles subject.create subject.destroy"),
)  # fmt: skip


def make_roles(ctx: Context) -> None:
    """Make the roles of every pool; the database is locked."""
    permissions: list[str] = []
    for name, uuid, what, more in _ROLES:
        for permission in words(more):
            values = {"uuid": ctx.pool.ids.uuid(), "name_label": permission, "name_description": "A permission"}
            permissions.append(ctx.db.create("role", ctx.pool.ids.ref(), values).ref)
        values = {"uuid": uuid, "name_label": name, "name_description": what}
        ctx.db.create("role", f"OpaqueRef:{uuid}", {**values, "subroles": list(permissions)})


# -- secrets


@call("secret.introduce", "string", "string", "string->string?", returns="@secret")
def secret_introduce(ctx: Context, uuid: str, value: str, other_config: dict[str, str] | None) -> str:
    """Make a secret of a given uuid. Raises DB_UNIQUENESS_CONSTRAINT_VIOLATION."""
    with ctx.db as db:
        if uuid in db.tables["secret"].by_uuid:
            raise Failure("DB_UNIQUENESS_CONSTRAINT_VIOLATION", "secret", "uuid", uuid)
        values = {"uuid": uuid, "value": value, "other_config": other_config or {}}
        return db.create("secret", ctx.pool.ids.ref(), values).ref


# -- subjects


@call("subject.create", "record:subject", returns="@subject")
def subject_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make a subject, a pool administrator at first. Raises SUBJECT_ALREADY_EXISTS."""
    with ctx.db as db:
        identifier = record.get("subject_identifier", "")
        if any(subject["subject_identifier"] == identifier for subject in db.rows("subject")):
            raise Failure("SUBJECT_ALREADY_EXISTS")
        values = record | {"uuid": ctx.pool.ids.uuid(), "roles": [POOL_ADMIN_REF]}
        return db.create("subject", ctx.pool.ids.ref(), values).ref


@call("subject.add_to_roles", "&subject", "@role")
def subject_add_to_roles(ctx: Context, subject: Row, role_ref: str) -> None:
    """Give a subject a role. Raises ROLE_NOT_FOUND, ROLE_ALREADY_EXISTS."""
    with ctx.db as db:
        if db.find("role", role_ref) is None:
            raise Failure("ROLE_NOT_FOUND")
        if role_ref in subject["roles"]:
            raise Failure("ROLE_ALREADY_EXISTS")
        db.put(subject, roles=[*subject["roles"], role_ref])


@call("subject.remove_from_roles", "&subject", "@role")
def subject_remove_from_roles(ctx: Context, subject: Row, role_ref: str) -> None:
    """Take a role from a subject. Raises ROLE_NOT_FOUND when it has no such role."""
    with ctx.db as db:
        if role_ref not in subject["roles"]:
            raise Failure("ROLE_NOT_FOUND")
        db.put(subject, roles=[ref for ref in subject["roles"] if ref != role_ref])


@call("subject.get_permissions_name_label", "&subject", returns="string*")
def subject_get_permissions_name_label(ctx: Context, subject: Row) -> list[str]:
    """Return the names of what a subject may do."""
    with ctx.db as db:
        found = [permission for role in db.linked(subject, "roles", "role") for permission in _permissions(db, role)]
        return list(dict.fromkeys(permission["name_label"] for permission in found))


# -- roles


def _permissions(db: Database, role: Row) -> list[Row]:
    """Return the roles without subroles that a role consists of: its permissions."""
    found: dict[str, Row] = {}
    for subrole in db.linked(role, "subroles", "role"):
        leaves = _permissions(db, subrole) if subrole["subroles"] else [subrole]
        found |= {leaf.ref: leaf for leaf in leaves}
    return list(found.values())


@call("role.get_permissions", "&role", returns="@role*")
def role_get_permissions(ctx: Context, role: Row) -> list[str]:
    """Return the permissions of a role."""
    with ctx.db as db:
        return [permission.ref for permission in _permissions(db, role)]


@call("role.get_permissions_name_label", "&role", returns="string*")
def role_get_permissions_name_label(ctx: Context, role: Row) -> list[str]:
    """Return the names of a role's permissions."""
    with ctx.db as db:
        return [permission["name_label"] for permission in _permissions(db, role)]


@call("role.get_by_permission", "&role", returns="@role*")
def role_get_by_permission(ctx: Context, permission: Row) -> list[str]:
    """Return the roles that contain a permission."""
    with ctx.db as db:
        return [role.ref for role in db.rows("role") if permission in _permissions(db, role)]


@call("role.get_by_permission_name_label", "string", returns="@role*")
def role_get_by_permission_name_label(ctx: Context, label: str) -> list[str]:
    """Return the roles that contain a permission of a name."""
    with ctx.db as db:
        return [
            role.ref
            for role in db.rows("role")
            if any(permission["name_label"] == label for permission in _permissions(db, role))
        ]


# -- external authentication


def _refuse_external(kind: str) -> None:
    """Raise AUTH_UNKNOWN_TYPE, or AUTH_ENABLE_FAILED for the one kind there is: no domain answers."""
    if kind != "AD":
        raise Failure("AUTH_UNKNOWN_TYPE", kind)
    raise Failure("AUTH_ENABLE_FAILED_DOMAIN_LOOKUP_FAILED", "No domain controller answers")


@call("host.enable_external_auth", "&host", "string->string", "string", "string")
def host_enable_external_auth(ctx: Context, host: Row, config: dict[str, str], service: str, kind: str) -> None:
    """Refuse: nobody answers for a domain."""
    del ctx, host, config, service
    _refuse_external(kind)


@call("pool.enable_external_auth", "&pool", "string->string", "string", "string", has_async=False)
def pool_enable_external_auth(ctx: Context, pool: Row, config: dict[str, str], service: str, kind: str) -> None:
    """Refuse with the failure of the first host."""
    del config, service, pool
    if kind != "AD":
        raise Failure("AUTH_UNKNOWN_TYPE", kind)
    master_ref = ctx.pool.master_ref
    raise Failure("POOL_AUTH_ENABLE_FAILED_DOMAIN_LOOKUP_FAILED", master_ref, "No domain controller answers")


@call("host.disable_external_auth", "&host", "string->string")
def host_disable_external_auth(ctx: Context, host: Row, config: dict[str, str]) -> None:
    """Do nothing: it is not enabled."""
    del ctx, host, config


@call("pool.disable_external_auth", "&pool", "string->string", has_async=False)
def pool_disable_external_auth(ctx: Context, pool: Row, config: dict[str, str]) -> None:
    """Do nothing: it is not enabled."""
    del ctx, pool, config


@call("pool.detect_nonhomogeneous_external_auth", "&pool")
def pool_detect_nonhomogeneous_external_auth(ctx: Context, pool: Row) -> None:
    """Do nothing: all hosts have none."""
    del ctx, pool
