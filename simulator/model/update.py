"""The classes of patches, updates and where they come from. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "pool_patch": """
        uuid                               string
        name_label                         string                              new = ""
        name_description                   string                              new = ""
        version                            string                              new = ""
        size                               int
        pool_applied                       bool
        host_patches                       @host_patch*                        < pool_patch
        after_apply_guidance               after_apply_guidance*
        pool_update                        @pool_update                        new = null
        other_config                       string->string                      rw = empty
    """,
    "pool_update": """
        uuid                               string
        name_label                         string                              new = ""
        name_description                   string                              new = ""
        version                            string                              new = ""
        installation_size                  int                                 new = 0
        key                                string                              new = ""
        after_apply_guidance               update_after_apply_guidance*        new = empty
        vdi                                @VDI                                new
        hosts                              @host*                              < updates
        other_config                       string->string                      rw = empty
        enforce_homogeneity                bool                                new = false
    """,
    "host_patch": """
        uuid                               string
        name_label                         string                              new = ""
        name_description                   string                              new = ""
        version                            string                              new
        host                               @host                               new
        applied                            bool
        timestamp_applied                  datetime
        size                               int
        pool_patch                         @pool_patch                         new = null
        other_config                       string->string                      rw = empty
    """,
    "Repository": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        binary_url                         string                              new = ""
        source_url                         string                              new = ""
        update                             bool                                new = false
        hash                               string
        up_to_date                         bool                                gone
        gpgkey_path                        string                              new = ""
    """,
}
