"""The classes of host clusters. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "Cluster": """
        uuid                               string
        cluster_hosts                      @Cluster_host*                      < cluster
        pending_forget                     string*
        cluster_token                      string                              new = ""
        cluster_stack                      string                              new = corosync
        is_quorate                         bool
        quorum                             int
        live_hosts                         int
        allowed_operations                 cluster_operation*
        current_operations                 string->cluster_operation
        pool_auto_join                     bool                                new = true
        token_timeout                      float                               new = 20.
        token_timeout_coefficient          float                               new = 1.
        cluster_config                     string->string                      new = empty
        other_config                       string->string                      rw = empty
    """,
    "Cluster_host": """
        uuid                               string
        cluster                            @Cluster                            new = null
        host                               @host                               new = null
        enabled                            bool
        PIF                                @PIF                                new = null
        joined                             bool                                = true
        live                               bool
        last_update_live                   datetime
        allowed_operations                 cluster_host_operation*
        current_operations                 string->cluster_host_operation
        other_config                       string->string                      new = empty
    """,
}
