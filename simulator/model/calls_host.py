"""The calls of hosts, the pool, sessions and tasks. The notation is explained in `simulator.model.calls`."""

from __future__ import annotations

CALLS = {
    "host": """
        disable                            &host bool?
        is_in_emergency_mode                                                            -> bool sync hidden
        local_assert_healthy                                                            sync hidden
        enable                             &host
        shutdown                           &host
        reboot                             &host
        dmesg                              &host                                        -> string
        dmesg_clear                        &host                                        -> string
        get_log                            &host                                        -> string
        send_debug_keys                    &host string
        bugreport_upload                   &host string string->string
        list_methods                                                                    -> string* sync
        license_apply                      @host string                                 gone
        license_add                        &host string
        license_remove                     &host
        destroy                            &host
        power_on                           &host
        emergency_ha_disable               bool?
        get_data_sources                   &host                                        -> record:data_source* sync
        record_data_source                 &host string                                 sync
        query_data_source                  &host string                                 -> float sync
        forget_data_source_archives        &host string                                 sync
        assert_can_evacuate                &host
        get_vms_which_prevent_evacuation   &host                                        -> @VM->string*
        get_uncooperative_resident_VMs     &host                                        -> @VM*
        evacuate                           &host @network? int?
        syslog_reconfigure                 &host
        management_reconfigure             &PIF
        local_management_reconfigure       string                                       sync
        management_disable                                                              sync
        get_management_interface           &host                                        -> @PIF
        get_system_status_capabilities     &host                                        -> string sync
        restart_agent                      &host
        shutdown_agent
        set_hostname_live                  &host string
        compute_free_memory                &host                                        -> int
        compute_memory_overhead            &host                                        -> int
        sync_data                          &host                                        sync
        backup_rrds                        &host float                                  sync
        create_new_blob                    &host string string bool?                    -> @blob
        call_plugin                        &host string string string->string           -> string
        has_extension                      &host string                                 -> bool
        call_extension                     &host string                                 -> string sync
        get_servertime                     &host                                        -> datetime sync
        get_server_localtime               &host                                        -> datetime sync
        enable_external_auth               &host string->string string string
        disable_external_auth              &host string->string
        retrieve_wlb_evacuate_recommendations &host                                        -> @VM->string*
        get_server_certificate             &host                                        -> string
        refresh_server_certificate         &host
        install_server_certificate         &host string string string
        emergency_reset_server_certificate
        reset_server_certificate           &host
        apply_edition                      &host string bool                            sync
        refresh_pack_info                  &host
        set_power_on_mode                  &host string string->string
        set_cpu_features                   @host string                                 gone
        reset_cpu_features                 @host                                        gone
        enable_local_storage_caching       &host &SR
        disable_local_storage_caching      &host
        migrate_receive                    &host &network string->string                -> string->string
        declare_dead                       &host
        enable_display                     &host                                        -> host_display
        disable_display                    &host                                        -> host_display
        set_ssl_legacy                     &host bool
        set_iscsi_iqn                      &host string
        set_multipathing                   &host bool
        set_uefi_certificates              &host string
        set_sched_gran                     &host host_sched_gran
        get_sched_gran                     &host                                        -> host_sched_gran
        set_numa_affinity_policy           &host host_numa_affinity_policy
        emergency_disable_tls_verification
        emergency_reenable_tls_verification
        apply_updates                      &host string                                 -> string**
        set_https_only                     &host bool
        apply_recommended_guidances        @host                                        gone
        emergency_clear_mandatory_guidance
    """,
    "host_crashdump": """
        destroy                            &host_crashdump
        upload                             &host_crashdump string string->string
    """,
    "pool": """
        join                               string string string
        join_force                         string string string
        eject                              &host
        emergency_transition_to_master
        emergency_reset_master             string
        recover_slaves                                                                  -> @host*
        create_VLAN                        string &network int                          -> @PIF*
        management_reconfigure             &network
        create_VLAN_from_PIF               &PIF &network int                            -> @PIF*
        enable_ha                          @SR* string->string
        disable_ha
        sync_database
        designate_new_master               &host
        ha_prevent_restarts_for            int                                          sync
        ha_failover_plan_exists            int                                          -> bool sync
        ha_compute_max_host_failures_to_tolerate                                              -> int sync
        ha_compute_hypothetical_max_host_failures_to_tolerate @VM->string                                  -> int sync
        ha_compute_vm_failover_plan        @host* @VM*                                  -> @VM->string->string sync
        set_ha_host_failures_to_tolerate   &pool int
        create_new_blob                    &pool string string bool?                    -> @blob
        enable_external_auth               &pool string->string string string           sync
        disable_external_auth              &pool string->string                         sync
        detect_nonhomogeneous_external_auth &pool
        initialize_wlb                     string string string string string
        deconfigure_wlb
        send_wlb_configuration             string->string
        retrieve_wlb_configuration                                                      -> string->string
        retrieve_wlb_recommendations                                                    -> @VM->string*
        send_test_post                     string int string                            -> string
        certificate_install                string string
        certificate_uninstall              string
        certificate_list                                                                -> string*
        install_ca_certificate             string string
        uninstall_ca_certificate           string
        crl_install                        string string
        crl_uninstall                      string
        crl_list                                                                        -> string*
        certificate_sync
        enable_tls_verification                                                         sync
        enable_redo_log                    &SR
        disable_redo_log
        set_vswitch_controller             string
        test_archive_target                &pool string->string                         -> string
        enable_local_storage_caching       &pool
        disable_local_storage_caching      &pool
        get_license_state                  &pool                                        -> string->string
        apply_edition                      &pool string
        enable_ssl_legacy                  @pool                                        gone
        disable_ssl_legacy                 &pool
        set_igmp_snooping_enabled          &pool bool
        has_extension                      &pool string                                 -> bool
        add_to_guest_agent_config          &pool string string
        remove_from_guest_agent_config     &pool string
        rotate_secret
        set_repositories                   &pool @Repository*
        add_repository                     &pool &Repository
        remove_repository                  &pool &Repository
        sync_updates                       &pool bool string? string?                   -> string
        check_update_readiness             &pool bool                                   -> string**
        enable_client_certificate_auth     &pool string
        disable_client_certificate_auth    &pool
        configure_repository_proxy         &pool string string string
        disable_repository_proxy           &pool
        set_uefi_certificates              &pool string
        set_custom_uefi_certificates       &pool string
        set_https_only                     &pool bool
        set_telemetry_next_collection      &pool datetime
        reset_telemetry_uuid               &pool
        configure_update_sync              &pool update_sync_frequency int
        set_update_sync_enabled            &pool bool
        set_local_auth_max_threads         &pool int
        set_ext_auth_max_threads           &pool int
        is_slave                           &host                                        -> bool sync hidden
    """,
    "task": """
        create                             string string                                -> @task sync
        destroy                            &task                                        sync
        cancel                             &task                                        sync
        set_status                         &task task_status_type                       sync
        set_progress                       &task float                                  sync
        set_result                         &task string                                 sync
        set_error_info                     &task string*                                sync
        set_resident_on                    &task @host                                  sync hidden
    """,
    "event": """
        register                           string*                                      sync
        unregister                         string*                                      sync
        next                                                                            -> record:event* sync
        from                               string* string float                         -> record:batch sync
        get_current_id                                                                  -> int sync
        inject                             string string                                -> string sync
    """,
    "message": """
        create                             string int cls string string                 -> @message sync
        destroy                            &message                                     sync
        destroy_many                       @message*                                    sync
        get                                cls string datetime                          -> @message->record:message sync
        get_all                                                                         -> @message* sync
        get_since                          datetime                                     -> @message->record:message sync
        get_record                         &message                                     -> record:message sync
        get_by_uuid                        string                                       -> @message sync
        get_all_records                                                                 -> @message->record:message sync
        get_all_records_where              string                                       -> @message->record:message sync
    """,
    "blob": """
        create                             string bool                                  -> @blob sync
        destroy                            &blob                                        sync
    """,
    "Observer": """
        create                             record:Observer                              -> @Observer
        destroy                            &Observer
        set_hosts                          &Observer @host*
        set_enabled                        &Observer bool
        set_attributes                     &Observer string->string
        set_endpoints                      &Observer string*
        set_components                     &Observer string*
    """,
    "session": """
        login_with_password                string string string? string?                -> @session open sync
        logout                                                                          sync
        change_password                    string string                                sync
        slave_local_login_with_password    string string                                -> @session open sync
        create_from_db_file                string                                       -> @session sync
        local_logout                                                                    sync
        get_all_subject_identifiers                                                     -> string* sync
        logout_subject_identifier          string                                       sync
        slave_login                        @host string                                 -> @session open sync hidden
        slave_local_login                  string                                       -> @session open sync hidden
    """,
    "auth": """
        get_subject_identifier             string                                       -> string
        get_subject_information_from_identifier string                                       -> string->string
        get_group_membership               string                                       -> string*
    """,
    "subject": """
        create                             record:subject                               -> @subject
        destroy                            &subject
        add_to_roles                       &subject &role
        remove_from_roles                  &subject &role
        get_permissions_name_label         &subject                                     -> string*
    """,
    "role": """
        get_permissions                    &role                                        -> @role*
        get_permissions_name_label         &role                                        -> string*
        get_by_permission                  &role                                        -> @role*
        get_by_permission_name_label       string                                       -> @role*
    """,
    "user": """
        create                             record:user                                  -> @user
        destroy                            &user
    """,
    "secret": """
        create                             record:secret                                -> @secret
        introduce                          string string string->string?                -> @secret hidden
        destroy                            &secret
    """,
    "pool_patch": """
        apply                              &pool_patch &host                            -> string
        pool_apply                         &pool_patch
        precheck                           &pool_patch &host                            -> string
        clean                              &pool_patch
        pool_clean                         &pool_patch
        destroy                            &pool_patch
        clean_on_host                      &pool_patch &host
    """,
    "pool_update": """
        introduce                          &VDI                                         -> @pool_update
        precheck                           &pool_update &host                           -> livepatch_status
        apply                              &pool_update &host
        pool_apply                         &pool_update
        pool_clean                         &pool_update
        destroy                            &pool_update
    """,
    "host_patch": """
        destroy                            &host_patch
        apply                              &host_patch                                  -> string
    """,
    "Repository": """
        introduce                          string string string string bool string      -> @Repository
        forget                             &Repository
        set_gpgkey_path                    &Repository string
    """,
    "Cluster": """
        create                             &PIF string bool float float                 -> @Cluster
        destroy                            &Cluster
        get_network                        &Cluster                                     -> @network
        pool_create                        &network string float float                  -> @Cluster
        pool_force_destroy                 &Cluster
        pool_destroy                       &Cluster
        pool_resync                        &Cluster
    """,
    "Cluster_host": """
        create                             &Cluster &host &PIF                          -> @Cluster_host
        destroy                            &Cluster_host
        enable                             &Cluster_host
        force_destroy                      &Cluster_host
        disable                            &Cluster_host
    """,
}
