"""The classes of sessions, and of those who may have one. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "session": """
        uuid                               string
        this_host                          @host
        this_user                          @user
        last_active                        datetime
        pool                               bool
        other_config                       string->string                      rw = empty
        is_local_superuser                 bool
        subject                            @subject
        validation_time                    datetime
        auth_user_sid                      string
        auth_user_name                     string
        rbac_permissions                   string*                             new = empty
        tasks                              @task*                              < session
        parent                             @session                            new = null
        originator                         string
        client_certificate                 bool
    """,
    "auth": """
    """,
    "subject": """
        uuid                               string
        subject_identifier                 string                              new = ""
        other_config                       string->string                      new = empty
        roles                              @role*  = {OpaqueRef:0165f154-ba3e-034e-6b27-5d271af109ba}
    """,
    "role": """
        uuid                               string
        name_label                         string                              new = ""
        name_description                   string                              new = ""
        subroles                           @role*                              new = empty
        is_internal                        bool
    """,
    "user": """
        uuid                               string
        short_name                         string                              new
        fullname                           string                              rw
        other_config                       string->string                      rw = empty
    """,
    "secret": """
        uuid                               string
        value                              string                              rw
        other_config                       string->string                      rw = empty
    """,
    "Certificate": """
        uuid                               string
        name                               string
        type                               certificate_type                    = host
        host                               @host                               new = null
        not_before                         datetime                            new = 19700101T00:00:00Z
        not_after                          datetime                            new = 19700101T00:00:00Z
        fingerprint                        string                              new = ""
    """,
}
