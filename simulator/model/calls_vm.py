"""The calls of virtual machines and what groups them. The notation is explained in `simulator.model.calls`."""

from __future__ import annotations

CALLS = {
    "VM": """
        create                             record:VM                                    -> @VM
        destroy                            &VM
        snapshot                           &VM string @VDI*?                            -> @VM
        snapshot_with_quiesce              @VM string                                   -> @VM gone
        clone                              &VM string                                   -> @VM
        copy                               &VM string @SR                               -> @VM
        revert                             &VM
        checkpoint                         &VM string                                   -> @VM
        provision                          &VM
        start                              &VM bool bool
        start_on                           &VM &host bool bool
        pause                              &VM
        unpause                            &VM
        clean_shutdown                     &VM
        shutdown                           &VM
        clean_reboot                       &VM
        hard_shutdown                      &VM
        power_state_reset                  &VM
        hard_reboot                        &VM
        suspend                            &VM
        resume                             &VM bool bool
        resume_on                          &VM &host bool bool
        pool_migrate                       &VM &host string->string
        set_VCPUs_number_live              &VM int
        add_to_VCPUs_params_live           &VM string string
        set_NVRAM                          &VM string->string                           sync
        add_to_NVRAM                       &VM string string                            sync
        remove_from_NVRAM                  &VM string                                   sync
        set_ha_restart_priority            &VM string                                   sync
        set_ha_always_run                  &VM bool                                     sync
        compute_memory_overhead            &VM                                          -> int
        set_memory_dynamic_max             &VM int                                      sync
        set_memory_dynamic_min             &VM int                                      sync
        set_memory_dynamic_range           &VM int int
        set_memory_static_max              &VM int                                      sync
        set_memory_static_min              &VM int                                      sync
        set_memory_static_range            &VM int int
        set_memory_limits                  &VM int int int int
        set_memory                         &VM int
        set_memory_target_live             &VM int
        wait_memory_target_live            &VM
        get_cooperative                    &VM                                          -> bool
        set_HVM_shadow_multiplier          &VM float                                    sync
        set_shadow_multiplier_live         &VM float
        set_VCPUs_max                      &VM int                                      sync
        set_VCPUs_at_startup               &VM int                                      sync
        send_sysrq                         &VM string
        send_trigger                       &VM string
        maximise_memory                    &VM int bool                                 -> int
        migrate_send &VM string->string bool @VDI->@SR @VIF->@network string->string @VGPU->@GPU_group? \
            @VDI->string? -> @VM
        assert_can_migrate &VM string->string bool @VDI->@SR @VIF->@network string->string @VGPU->@GPU_group?
        assert_can_migrate_sender &VM string->string bool @VDI->@SR @VIF->@network @VGPU->@GPU_group string->string \
            hidden
        get_boot_record                    &VM                                          -> record:VM sync
        get_data_sources                   &VM                                          -> record:data_source* sync
        record_data_source                 &VM string                                   sync
        query_data_source                  &VM string                                   -> float sync
        forget_data_source_archives        &VM string                                   sync
        assert_operation_valid             &VM vm_operations
        update_allowed_operations          &VM
        get_allowed_VBD_devices            &VM                                          -> string* sync
        get_allowed_VIF_devices            &VM                                          -> string* sync
        get_possible_hosts                 &VM                                          -> @host*
        assert_can_boot_here               &VM &host
        create_new_blob                    &VM string string bool?                      -> @blob
        assert_agile                       &VM
        retrieve_wlb_recommendations       &VM                                          -> @host->string*
        set_bios_strings                   &VM string->string
        copy_bios_strings                  &VM &host
        set_protection_policy              @VM @VMPP                                    gone
        set_snapshot_schedule              &VM @VMSS                                    sync
        set_start_delay                    &VM int
        set_shutdown_delay                 &VM int
        set_order                          &VM int
        set_suspend_VDI                    &VM @VDI
        assert_can_be_recovered            &VM @session
        get_SRs_required_for_recovery      &VM @session                                 -> @SR*
        recover                            &VM @session bool
        import_convert                     string string string @SR string->string
        set_appliance                      &VM @VM_appliance
        query_services                     &VM                                          -> string->string
        call_plugin                        &VM string string string->string             -> string
        set_has_vendor_device              &VM bool
        import                             string @SR bool bool                         -> @VM*
        set_actions_after_crash            &VM on_crash_behaviour
        set_domain_type                    &VM domain_type                              sync
        set_HVM_boot_policy                &VM string                                   sync
        restart_device_models              &VM
    """,
    "VBD": """
        create                             record:VBD                                   -> @VBD
        destroy                            &VBD
        eject                              &VBD
        insert                             &VBD &VDI
        plug                               &VBD
        unplug                             &VBD
        unplug_force                       &VBD
        assert_attachable                  &VBD
        set_mode                           &VBD vbd_mode
        pause                              &VBD                                         -> string hidden
        unpause                            &VBD string                                  hidden
    """,
    "VIF": """
        create                             record:VIF                                   -> @VIF
        destroy                            &VIF
        plug                               &VIF
        unplug                             &VIF
        unplug_force                       &VIF
        move                               &VIF &network
        set_locking_mode                   &VIF vif_locking_mode
        set_ipv4_allowed                   &VIF string*
        add_ipv4_allowed                   &VIF string
        remove_ipv4_allowed                &VIF string
        set_ipv6_allowed                   &VIF string*
        add_ipv6_allowed                   &VIF string
        remove_ipv6_allowed                &VIF string
        configure_ipv4                     &VIF vif_ipv4_configuration_mode string? string?
        configure_ipv6                     &VIF vif_ipv6_configuration_mode string? string?
    """,
    "console": """
        create                             record:console                               -> @console
        destroy                            &console
    """,
    "VTPM": """
        create                             &VM bool                                     -> @VTPM
        destroy                            &VTPM
    """,
    "crashdump": """
        destroy                            &crashdump
    """,
    "VMPP": """
        create                             record:VMPP                                  -> @VMPP gone
        destroy                            @VMPP                                        gone
        protect_now                        @VMPP                                        -> string gone
        archive_now                        @VM                                          -> string gone
        get_alerts                         @VMPP int                                    -> string* gone
        set_backup_retention_value         @VMPP int                                    gone
        set_backup_frequency               @VMPP vmpp_backup_frequency                  gone
        set_backup_schedule                @VMPP string->string                         gone
        set_archive_frequency              @VMPP vmpp_archive_frequency                 gone
        set_archive_schedule               @VMPP string->string                         gone
        set_archive_target_type            @VMPP vmpp_archive_target_type               gone
        set_archive_target_config          @VMPP string->string                         gone
        set_is_alarm_enabled               @VMPP bool                                   gone
        set_alarm_config                   @VMPP string->string                         gone
        add_to_backup_schedule             @VMPP string string                          gone
        add_to_archive_target_config       @VMPP string string                          gone
        add_to_archive_schedule            @VMPP string string                          gone
        add_to_alarm_config                @VMPP string string                          gone
        remove_from_backup_schedule        @VMPP string                                 gone
        remove_from_archive_target_config  @VMPP string                                 gone
        remove_from_archive_schedule       @VMPP string                                 gone
        remove_from_alarm_config           @VMPP string                                 gone
        set_backup_last_run_time           @VMPP datetime                               gone
        set_archive_last_run_time          @VMPP datetime                               gone
    """,
    "VMSS": """
        create                             record:VMSS                                  -> @VMSS
        destroy                            &VMSS
        snapshot_now                       &VMSS                                        -> string
        set_retained_snapshots             &VMSS int
        set_frequency                      &VMSS vmss_frequency
        set_schedule                       &VMSS string->string
        add_to_schedule                    &VMSS string string
        remove_from_schedule               &VMSS string
        set_last_run_time                  &VMSS datetime
        set_type                           &VMSS vmss_type
    """,
    "VM_appliance": """
        create                             record:VM_appliance                          -> @VM_appliance
        destroy                            &VM_appliance
        start                              &VM_appliance bool
        clean_shutdown                     &VM_appliance
        hard_shutdown                      &VM_appliance
        shutdown                           &VM_appliance
        assert_can_be_recovered            &VM_appliance @session
        get_SRs_required_for_recovery      &VM_appliance @session                       -> @SR*
        recover                            &VM_appliance @session bool
    """,
    "DR_task": """
        create                             string string->string string*                -> @DR_task
        destroy                            &DR_task
    """,
}
