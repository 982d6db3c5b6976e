"""Log in to OpenStack: from a cloud's name in clouds.yaml to Glance's address and tokens.

The extra `vmops[openstack]` (keystoneauth1, openstacksdk) does the login and the catalogue, and is imported only when a
`cloud:NAME` is asked for. It never carries image bytes: its retries resend an exhausted body (images.md 6.3).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from worker.errors import ImageStoreDenied, ImageStoreUnreachable
from worker.images.glance import GlanceStore
from worker.images.wire import Auth

#: A token with less life than this is renewed before an upload begins; Glance checks it at the beginning only.
FRESH_FOR_S = 3600


class CloudAuth(Auth):
    """Tokens from Keystone, or from whatever `auth_type` the cloud has."""

    def __init__(self, cloud: str, session: Any) -> None:
        self._cloud, self._session = cloud, session

    def token(self) -> str | None:
        """Return a valid token, logging in when there is none. Raises ImageStoreDenied, ImageStoreUnreachable."""
        with _errors(self._cloud):
            token: str | None = self._session.get_token()
            return token

    def renew(self) -> bool:
        """Forget the token that was refused."""
        return bool(self._session.invalidate())

    def prepare_for_hours(self) -> None:
        """Log in anew when the token has little life left."""
        get_access = getattr(self._session.auth, "get_access", None)
        if get_access is None:
            return
        with _errors(self._cloud):
            if get_access(self._session).will_expire_soon(FRESH_FOR_S):
                self._session.invalidate()


def open_cloud(name: str) -> GlanceStore:
    """Return Glance of the cloud `name` in clouds.yaml (or `envvars` for OS_* variables). Logs in to find the address.

    Raises ValueError for a cloud that is not described well enough, ImageStoreDenied, ImageStoreUnreachable.
    """
    try:
        config = import_module("openstack.config")
        exceptions = import_module("openstack.exceptions")
    except ImportError as error:
        raise ValueError(
            f"image_store = 'cloud:{name}' needs the OpenStack libraries: pip install 'vmops[openstack]'."
        ) from error
    with _errors(name):
        try:
            region = config.OpenStackConfig(app_name="vmops").get_one(cloud=name)
        except exceptions.ConfigException as error:
            raise ValueError(f"clouds.yaml does not describe the cloud {name!r} well: {error}") from error
        session = region.get_session()
        url = region.get_session_endpoint("image")
    if not url:
        raise ValueError(f"The catalogue of the cloud {name!r} has no image service (set image_endpoint_override).")
    verify, _ = region.get_requests_verify_args()
    ca_file = Path(verify) if isinstance(verify, str) else None
    return GlanceStore(url, auth=CloudAuth(name, session), ca_file=ca_file, verify_tls=bool(verify))


@contextmanager
def _errors(cloud: str) -> Generator[None]:
    """Turn keystoneauth's errors into ours; its texts name addresses and causes, never passwords."""
    exceptions = import_module("keystoneauth1.exceptions")
    try:
        yield
    except (exceptions.Unauthorized, exceptions.Forbidden) as error:
        raise ImageStoreDenied(f"The cloud {cloud!r} refused the login: check its entry in clouds.yaml.") from error
    except (exceptions.ConnectFailure, exceptions.HttpServerError, exceptions.DiscoveryFailure) as error:
        raise ImageStoreUnreachable(f"The cloud {cloud!r} does not answer the login: {error}") from error
    except exceptions.ClientException as error:
        raise ValueError(f"clouds.yaml does not describe the cloud {cloud!r} well: {error}") from error
