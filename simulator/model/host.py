"""The classes of hosts. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "host": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        memory_overhead                    int
        allowed_operations                 host_allowed_operations*
        current_operations                 string->host_allowed_operations
        API_version_major                  int
        API_version_minor                  int
        API_version_vendor                 string
        API_version_vendor_implementation  string->string
        enabled                            bool
        software_version                   string->string                      new
        other_config                       string->string                      rw
        capabilities                       string*                             new
        cpu_configuration                  string->string
        sched_policy                       string
        supported_bootloaders              string*
        resident_VMs                       @VM*                                < resident_on
        logging                            string->string                      rw
        PIFs                               @PIF*                               < host
        suspend_image_sr                   @SR                                 rw
        crash_dump_sr                      @SR                                 rw
        crashdumps                         @host_crashdump*                    < host
        patches                            @host_patch*                        < host
        updates                            @pool_update*                       < hosts
        PBDs                               @PBD*                               < host
        host_CPUs                          @host_cpu*                          < host
        cpu_info                           string->string
        hostname                           string                              rw
        address                            string                              rw
        metrics                            @host_metrics
        license_params                     string->string
        ha_statefiles                      string*
        ha_network_peers                   string*
        blobs                              string->@blob
        tags                               string*                             rw = empty
        external_auth_type                 string
        external_auth_service_name         string
        external_auth_configuration        string->string
        edition                            string
        license_server                     string->string                      rw = {address=localhost port=27000}
        bios_strings                       string->string
        power_on_mode                      string
        power_on_config                    string->string
        local_cache_sr                     @SR                                 new = null
        chipset_info                       string->string
        PCIs                               @PCI*                               < host
        PGPUs                              @PGPU*                              < host
        PUSBs                              @PUSB*                              < host
        ssl_legacy                         bool                                new = true
        guest_VCPUs_params                 string->string                      rw = empty
        display                            host_display                        rw = enabled
        virtual_hardware_platform_versions int*                                = {0}
        control_domain                     @VM
        updates_requiring_reboot           @pool_update*
        features                           @Feature*                           < host
        iscsi_iqn                          string                              new = ""
        multipathing                       bool                                new = false
        uefi_certificates                  string                              new = ""
        certificates                       @Certificate*                       < host
        editions                           string*
        pending_guidances                  update_guidances*
        tls_verification_enabled           bool
        last_software_update               datetime
        https_only                         bool
        latest_synced_updates_applied      latest_synced_updates_applied_state = unknown
        numa_affinity_policy               host_numa_affinity_policy           = default_policy
        pending_guidances_recommended      update_guidances*
        pending_guidances_full             update_guidances*
        last_update_hash                   string
    """,
    "host_metrics": """
        uuid                               string
        memory_total                       int
        memory_free                        int                                 gone
        live                               bool
        last_updated                       datetime
        other_config                       string->string                      rw = empty
    """,
    "host_cpu": """
        uuid                               string
        host                               @host
        number                             int
        vendor                             string
        speed                              int
        modelname                          string
        family                             int
        model                              int
        stepping                           string
        flags                              string
        features                           string
        utilisation                        float
        other_config                       string->string                      rw = empty
    """,
    "host_crashdump": """
        uuid                               string
        host                               @host                               new
        timestamp                          datetime
        size                               int
        other_config                       string->string                      rw = empty
    """,
    "Feature": """
        uuid                               string
        name_label                         string                              new = ""
        name_description                   string                              new = ""
        enabled                            bool
        experimental                       bool                                new = false
        version                            string                              new = 1.0
        host                               @host
    """,
}
