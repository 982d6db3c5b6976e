"""The calls of storage, networks and hardware. The notation is explained in `simulator.model.calls`."""

from __future__ import annotations

CALLS = {
    "SR": """
        create &host string->string int string string string string bool string->string -> @SR
        introduce                          string string string string string bool string->string? -> @SR
        make                               &host string->string int string string string string string->string -> string
        destroy                            &SR
        forget                             &SR
        update                             &SR
        get_supported_types                                                             -> string* sync
        scan                               &SR
        probe                              &host string->string string string->string   -> string
        probe_ext                          &host string->string string string->string   -> record:probe_result*
        set_shared                         &SR bool
        set_name_label                     &SR string
        set_name_description               &SR string
        create_new_blob                    &SR string string bool?                      -> @blob
        set_physical_size                  &SR int                                      sync
        assert_can_host_ha_statefile       &SR
        assert_supports_database_replication &SR
        enable_database_replication        &SR
        disable_database_replication       &SR
        get_data_sources                   &SR                                          -> record:data_source* sync
        record_data_source                 &SR string                                   sync
        query_data_source                  &SR string                                   -> float sync
        forget_data_source_archives        &SR string                                   sync
    """,
    "LVHD": """
        enable_thin_provisioning           &host &SR int int                            -> string
    """,
    "VDI": """
        create                             record:VDI                                   -> @VDI
        destroy                            &VDI
        snapshot                           &VDI string->string?                         -> @VDI
        clone                              &VDI string->string?                         -> @VDI
        resize                             &VDI int
        resize_online                      @VDI int                                     gone
        introduce string string string &SR vdi_type bool bool string->string string string->string string->string \
            bool? int? int? @pool? bool? datetime? @VDI? -> @VDI
        update                             &VDI
        copy                               &VDI @SR? @VDI? @VDI?                        -> @VDI
        forget                             &VDI
        set_sharable                       &VDI bool                                    sync
        set_read_only                      &VDI bool                                    sync
        set_name_label                     &VDI string
        set_name_description               &VDI string
        set_on_boot                        &VDI on_boot
        set_allow_caching                  &VDI bool
        open_database                      &VDI                                         -> @session
        read_database_pool_uuid            &VDI                                         -> string
        pool_migrate                       &VDI &SR string->string                      -> @VDI
        enable_cbt                         &VDI
        disable_cbt                        &VDI
        data_destroy                       &VDI
        list_changed_blocks                &VDI &VDI                                    -> string
        get_nbd_info &VDI -> record:vdi_nbd_server_info* sync
        generate_config                    &host &VDI                                   -> string hidden
        force_unlock                       &VDI                                         hidden
        pool_introduce string string string &SR vdi_type bool bool string->string string string->string \
            string->string bool? int? int? @pool? bool? datetime? @VDI? -> @VDI hidden
        db_introduce string string string &SR vdi_type bool bool string->string string string->string string->string \
            bool? int? int? @pool? bool? datetime? @VDI? -> @VDI hidden
        db_forget                          &VDI                                         hidden
    """,
    "PBD": """
        create                             record:PBD                                   -> @PBD
        destroy                            &PBD
        plug                               &PBD
        unplug                             &PBD
        set_device_config                  &PBD string->string
    """,
    "network": """
        create                             record:network                               -> @network
        destroy                            &network
        create_new_blob                    &network string string bool?                 -> @blob
        set_default_locking_mode           &network network_default_locking_mode
        add_purpose                        &network network_purpose
        remove_purpose                     &network network_purpose
        attach                             &network &host                               hidden
    """,
    "PIF": """
        create_VLAN                        string &network &host int                    -> @PIF
        destroy                            &PIF
        reconfigure_ip                     &PIF ip_configuration_mode string string string string
        reconfigure_ipv6                   &PIF ipv6_configuration_mode string string string
        set_primary_address_type           &PIF primary_address_type
        scan                               &host
        introduce                          &host string string bool?                    -> @PIF
        forget                             &PIF
        unplug                             &PIF
        set_disallow_unplug                &PIF bool
        plug                               &PIF
        db_introduce string &network &host string int int bool ip_configuration_mode string string string string \
            @Bond @VLAN bool string->string bool ipv6_configuration_mode? string*? string? primary_address_type? \
            bool? string->string? -> @PIF
        db_forget                          &PIF
        set_property                       &PIF string string
    """,
    "Bond": """
        create                             &network @PIF* string bond_mode? string->string? -> @Bond
        destroy                            &Bond
        set_mode                           &Bond bond_mode
        set_property                       &Bond string string
    """,
    "VLAN": """
        create                             &PIF int &network                            -> @VLAN
        destroy                            &VLAN
    """,
    "tunnel": """
        create                             &PIF &network tunnel_protocol?               -> @tunnel
        destroy                            &tunnel
    """,
    "network_sriov": """
        create                             &PIF &network                                -> @network_sriov
        destroy                            &network_sriov
        get_remaining_capacity             &network_sriov                               -> int
    """,
    "SDN_controller": """
        introduce                          sdn_controller_protocol string int           -> @SDN_controller
        forget                             &SDN_controller
    """,
    "PGPU": """
        add_enabled_VGPU_types             &PGPU &VGPU_type
        remove_enabled_VGPU_types          &PGPU &VGPU_type
        set_enabled_VGPU_types             &PGPU @VGPU_type*
        set_GPU_group                      &PGPU &GPU_group
        get_remaining_capacity             &PGPU &VGPU_type                             -> int
        enable_dom0_access                 &PGPU                                        -> pgpu_dom0_access
        disable_dom0_access                &PGPU                                        -> pgpu_dom0_access
    """,
    "GPU_group": """
        create                             string string string->string                 -> @GPU_group
        destroy                            &GPU_group
        get_remaining_capacity             &GPU_group &VGPU_type                        -> int
    """,
    "VGPU": """
        create                             &VM &GPU_group string? string->string? @VGPU_type? -> @VGPU
        destroy                            &VGPU
    """,
    "PUSB": """
        scan                               &host
        set_passthrough_enabled            &PUSB bool
    """,
    "USB_group": """
        create                             string string string->string                 -> @USB_group
        destroy                            &USB_group
    """,
    "VUSB": """
        create                             &VM &USB_group string->string?               -> @VUSB
        unplug                             &VUSB
        destroy                            &VUSB
    """,
    "PVS_site": """
        introduce                          string string string                         -> @PVS_site
        forget                             &PVS_site
        set_PVS_uuid                       &PVS_site string
    """,
    "PVS_server": """
        introduce                          string* int int &PVS_site                    -> @PVS_server
        forget                             &PVS_server
    """,
    "PVS_proxy": """
        create                             &PVS_site &VIF                               -> @PVS_proxy
        destroy                            &PVS_proxy
    """,
    "PVS_cache_storage": """
        create                             record:PVS_cache_storage                     -> @PVS_cache_storage
        destroy                            &PVS_cache_storage
    """,
}
