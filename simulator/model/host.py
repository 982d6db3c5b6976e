"""The classes of hosts and networks. The notation is explained in `simulator.model.schema`."""

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
        crashdumps                         @host_crashdump*
        patches                            @host_patch*
        updates                            @pool_update*
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
        license_server                     string->string                      rw = empty
        bios_strings                       string->string
        power_on_mode                      string
        power_on_config                    string->string
        local_cache_sr                     @SR                                 new = null
        chipset_info                       string->string
        PCIs                               @PCI*
        PGPUs                              @PGPU*
        PUSBs                              @PUSB*
        ssl_legacy                         bool                                new = true
        guest_VCPUs_params                 string->string                      rw = empty
        display                            host_display                        rw = enabled
        virtual_hardware_platform_versions int*                                = {0}
        control_domain                     @VM
        updates_requiring_reboot           @pool_update*
        features                           @Feature*
        iscsi_iqn                          string                              new = ""
        multipathing                       bool                                new = false
        uefi_certificates                  string                              new = ""
        certificates                       @Certificate*
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
        memory_free                        int
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
    "network": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        allowed_operations                 network_operations*
        current_operations                 string->network_operations
        VIFs                               @VIF*                               < network
        PIFs                               @PIF*                               < network
        MTU                                int                                 rw = 1500
        other_config                       string->string                      rw
        bridge                             string                              new = ""
        managed                            bool                                new = true
        blobs                              string->@blob
        tags                               string*                             rw = empty
        default_locking_mode               network_default_locking_mode        = unlocked
        assigned_ips                       @VIF->string
        purpose                            network_purpose*
    """,
    "PIF": """
        uuid                               string
        device                             string                              new
        network                            @network                            new
        host                               @host                               new
        MAC                                string                              new
        MTU                                int                                 new
        VLAN                               int                                 new
        metrics                            @PIF_metrics
        physical                           bool
        currently_attached                 bool                                = true
        ip_configuration_mode              ip_configuration_mode               = None
        IP                                 string
        netmask                            string
        gateway                            string
        DNS                                string
        bond_slave_of                      @Bond
        bond_master_of                     @Bond*
        VLAN_master_of                     @VLAN
        VLAN_slave_of                      @VLAN*
        management                         bool
        other_config                       string->string                      rw = empty
        disallow_unplug                    bool
        tunnel_access_PIF_of               @tunnel*
        tunnel_transport_PIF_of            @tunnel*
        ipv6_configuration_mode            ipv6_configuration_mode             = None
        IPv6                               string*
        ipv6_gateway                       string
        primary_address_type               primary_address_type                = IPv4
        managed                            bool                                new = true
        properties                         string->string
        capabilities                       string*
        igmp_snooping_status               pif_igmp_status                     = unknown
        sriov_physical_PIF_of              @network_sriov*
        sriov_logical_PIF_of               @network_sriov*
        PCI                                @PCI
    """,
    "PIF_metrics": """
        uuid                               string
        io_read_kbs                        float
        io_write_kbs                       float
        carrier                            bool
        vendor_id                          string
        vendor_name                        string
        device_id                          string
        device_name                        string
        speed                              int
        duplex                             bool
        pci_bus_path                       string
        last_updated                       datetime
        other_config                       string->string                      rw = empty
    """,
}
