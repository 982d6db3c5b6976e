"""The classes of Citrix Provisioning caches. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "PVS_site": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        PVS_uuid                           string                              new = ""
        cache_storage                      @PVS_cache_storage*                 < site
        servers                            @PVS_server*                        < site
        proxies                            @PVS_proxy*                         < site
    """,
    "PVS_server": """
        uuid                               string
        addresses                          string*                             new = empty
        first_port                         int                                 new = 0
        last_port                          int                                 new = 0
        site                               @PVS_site                           new = null
    """,
    "PVS_proxy": """
        uuid                               string
        site                               @PVS_site                           new = null
        VIF                                @VIF                                new = null
        currently_attached                 bool
        status                             pvs_proxy_status                    = stopped
    """,
    "PVS_cache_storage": """
        uuid                               string
        host                               @host                               new = null
        SR                                 @SR                                 new = null
        site                               @PVS_site                           new = null
        size                               int                                 new = 21474836480
        VDI                                @VDI
    """,
}
