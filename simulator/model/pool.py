"""The classes of the pool as a whole. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "pool": """
        uuid                               string
        name_label                         string                              rw
        name_description                   string                              rw
        master                             @host
        default_SR                         @SR                                 rw
        suspend_image_SR                   @SR                                 rw
        crash_dump_SR                      @SR                                 rw
        other_config                       string->string                      rw
        ha_enabled                         bool
        ha_configuration                   string->string
        ha_statefiles                      string*
        ha_host_failures_to_tolerate       int
        ha_plan_exists_for                 int
        ha_allow_overcommit                bool                                rw = false
        ha_overcommitted                   bool
        blobs                              string->@blob
        tags                               string*                             rw = empty
        gui_config                         string->string                      rw = empty
        health_check_config                string->string                      rw = empty
        wlb_url                            string
        wlb_username                       string
        wlb_enabled                        bool                                rw = false
        wlb_verify_cert                    bool                                rw = false
        redo_log_enabled                   bool
        redo_log_vdi                       @VDI
        vswitch_controller                 string
        restrictions                       string->string
        metadata_VDIs                      @VDI*                               < metadata_of_pool
        ha_cluster_stack                   string
        allowed_operations                 pool_allowed_operations*
        current_operations                 string->pool_allowed_operations
        guest_agent_config                 string->string
        cpu_info                           string->string
        policy_no_vendor_device            bool                                rw = false
        live_patching_disabled             bool                                rw = false
        igmp_snooping_enabled              bool
        uefi_certificates                  string                              new = ""
        custom_uefi_certificates           string                              new = ""
        is_psr_pending                     bool                                rw = false
        tls_verification_enabled           bool
        repositories                       @Repository*
        client_certificate_auth_enabled    bool
        client_certificate_auth_name       string
        repository_proxy_url               string
        repository_proxy_username          string
        repository_proxy_password          @secret
        migration_compression              bool                                rw = false
        coordinator_bias                   bool                                rw = true
        local_auth_max_threads             int                                 new = 8
        ext_auth_max_threads               int                                 new = 1
        telemetry_uuid                     @secret
        telemetry_frequency                telemetry_frequency                 = weekly
        telemetry_next_collection          datetime
        last_update_sync                   datetime
        update_sync_frequency              update_sync_frequency               = weekly
        update_sync_day                    int
        update_sync_enabled                bool
    """,
    "task": """
        uuid                               string
        name_label                         string
        name_description                   string
        allowed_operations                 task_allowed_operations*
        current_operations                 string->task_allowed_operations
        created                            datetime
        finished                           datetime
        status                             task_status_type
        resident_on                        @host
        progress                           float
        type                               string
        result                             string
        error_info                         string*
        other_config                       string->string                      rw = empty
        subtask_of                         @task
        subtasks                           @task*                              < subtask_of
        backtrace                          string                              = ()
        session                            @session                            hidden
    """,
    "event": """
        snapshot                           record:<class>
        id                                 int                                 new
        timestamp                          datetime                            new
        class                              string                              new
        operation                          event_operation                     new
        ref                                string                              new
        obj_uuid                           string                              new
    """,
    "message": """
        uuid                               string
        name                               string
        priority                           int
        cls                                cls
        obj_uuid                           string
        timestamp                          datetime
        body                               string
    """,
    "data_source": """
        name_label                         string
        name_description                   string
        enabled                            bool
        standard                           bool
        units                              string
        min                                float
        max                                float
        value                              float
    """,
    "blob": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        size                               int
        public                             bool                                rw = false
        last_updated                       datetime                            new
        mime_type                          string                              new
    """,
    "Observer": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        hosts                              @host*                              new = empty
        attributes                         string->string                      new = empty
        endpoints                          string*                             new = empty
        components                         string*                             new = empty
        enabled                            bool                                new = false
    """,
}
