"""The classes of networks. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
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
        bond_master_of                     @Bond*                              < master
        VLAN_master_of                     @VLAN
        VLAN_slave_of                      @VLAN*                              < tagged_PIF
        management                         bool
        other_config                       string->string                      rw = empty
        disallow_unplug                    bool
        tunnel_access_PIF_of               @tunnel*                            < access_PIF
        tunnel_transport_PIF_of            @tunnel*                            < transport_PIF
        ipv6_configuration_mode            ipv6_configuration_mode             = None
        IPv6                               string*
        ipv6_gateway                       string
        primary_address_type               primary_address_type                = IPv4
        managed                            bool                                new = true
        properties                         string->string
        capabilities                       string*
        igmp_snooping_status               pif_igmp_status                     = unknown
        sriov_physical_PIF_of              @network_sriov*                     < physical_PIF
        sriov_logical_PIF_of               @network_sriov*                     < logical_PIF
        PCI                                @PCI
    """,
    "PIF_metrics": """
        uuid                               string
        io_read_kbs                        float                               gone
        io_write_kbs                       float                               gone
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
    "Bond": """
        uuid                               string
        master                             @PIF                                new = null
        slaves                             @PIF*                               < bond_slave_of
        other_config                       string->string                      rw = empty
        primary_slave                      @PIF
        mode                               bond_mode                           = balance-slb
        properties                         string->string
        links_up                           int
        auto_update_mac                    bool                                = true
    """,
    "VLAN": """
        uuid                               string
        tagged_PIF                         @PIF                                new = null
        untagged_PIF                       @PIF
        tag                                int                                 new = -1
        other_config                       string->string                      rw = empty
    """,
    "tunnel": """
        uuid                               string
        access_PIF                         @PIF                                new = null
        transport_PIF                      @PIF                                new = null
        status                             string->string                      rw = {active=false}
        other_config                       string->string                      rw = empty
        protocol                           tunnel_protocol                     rw = gre
    """,
    "network_sriov": """
        uuid                               string
        physical_PIF                       @PIF                                new = null
        logical_PIF                        @PIF                                new = null
        requires_reboot                    bool
        configuration_mode                 sriov_configuration_mode            = unknown
    """,
    "SDN_controller": """
        uuid                               string
        protocol                           sdn_controller_protocol             new = ssl
        address                            string                              new = ""
        port                               int                                 new = 0
    """,
}
