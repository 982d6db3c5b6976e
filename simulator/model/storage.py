"""The classes of storage. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "SR": """
        uuid                               string
        name_label                         string                              new = ""
        name_description                   string                              new = ""
        allowed_operations                 storage_operations*
        current_operations                 string->storage_operations
        VDIs                               @VDI*                               < SR
        PBDs                               @PBD*                               < SR
        virtual_allocation                 int
        physical_utilisation               int
        physical_size                      int                                 new
        type                               string                              new
        content_type                       string                              new
        shared                             bool
        other_config                       string->string                      rw
        tags                               string*                             rw = empty
        sm_config                          string->string                      rw = empty
        blobs                              string->@blob
        local_cache_enabled                bool
        introduced_by                      @DR_task
        clustered                          bool
        is_tools_sr                        bool
    """,
    "sr_stat": """
        uuid                               string?
        name_label                         string
        name_description                   string
        free_space                         int
        total_space                        int
        clustered                          bool
        health                             sr_health
    """,
    "probe_result": """
        configuration                      string->string
        complete                           bool
        sr                                 record:sr_stat?
        extra_info                         string->string
    """,
    "LVHD": """
        uuid                               string
    """,
    "VDI": """
        uuid                               string
        name_label                         string                              new = ""
        name_description                   string                              new = ""
        allowed_operations                 vdi_operations*
        current_operations                 string->vdi_operations
        SR                                 @SR                                 new
        VBDs                               @VBD*                               < VDI
        crash_dumps                        @crashdump*                         < VDI
        virtual_size                       int                                 new
        physical_utilisation               int
        type                               vdi_type                            new
        sharable                           bool                                new
        read_only                          bool                                new
        other_config                       string->string                      rw
        storage_lock                       bool
        location                           string
        managed                            bool
        missing                            bool
        parent                             @VDI
        xenstore_data                      string->string                      rw = empty
        sm_config                          string->string                      rw = empty
        is_a_snapshot                      bool
        snapshot_of                        @VDI
        snapshots                          @VDI*                               < snapshot_of
        snapshot_time                      datetime
        tags                               string*                             rw = empty
        allow_caching                      bool
        on_boot                            on_boot                             = persist
        metadata_of_pool                   @pool
        metadata_latest                    bool
        is_tools_iso                       bool
        cbt_enabled                        bool
    """,
    "vdi_nbd_server_info": """
        exportname                         string
        address                            string
        port                               int
        cert                               string
        subject                            string
    """,
    "PBD": """
        uuid                               string
        host                               @host                               new
        SR                                 @SR                                 new
        device_config                      string->string                      new
        currently_attached                 bool
        other_config                       string->string                      rw = empty
    """,
    "SM": """
        uuid                               string
        name_label                         string
        name_description                   string
        type                               string
        vendor                             string
        copyright                          string
        version                            string
        required_api_version               string
        configuration                      string->string
        capabilities                       string*
        features                           string->int
        other_config                       string->string                      rw = empty
        driver_filename                    string
        required_cluster_stack             string*
    """,
}
