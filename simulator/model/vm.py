"""The classes of virtual machines and their devices. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "VM": """
        uuid                               string
        allowed_operations                 vm_operations*
        current_operations                 string->vm_operations
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        power_state                        vm_power_state                      new = Halted
        user_version                       int                                 rw
        is_a_template                      bool                                rw
        is_default_template                bool
        suspend_VDI                        @VDI                                new = null
        resident_on                        @host
        scheduled_to_be_resident_on        @host
        affinity                           @host                               rw
        memory_overhead                    int
        memory_target                      int                                 new = 0
        memory_static_max                  int                                 new
        memory_dynamic_max                 int                                 new
        memory_dynamic_min                 int                                 new
        memory_static_min                  int                                 new
        VCPUs_params                       string->string                      rw
        VCPUs_max                          int                                 new
        VCPUs_at_startup                   int                                 new
        actions_after_softreboot           on_softreboot_behavior              rw = soft_reboot
        actions_after_shutdown             on_normal_exit                      rw
        actions_after_reboot               on_normal_exit                      rw
        actions_after_crash                on_crash_behaviour                  new
        consoles                           @console*                           < VM
        VIFs                               @VIF*                               < VM
        VBDs                               @VBD*                               < VM
        VUSBs                              @VUSB*                              < VM
        crash_dumps                        @crashdump*                         < VM
        VTPMs                              @VTPM*                              < VM
        PV_bootloader                      string                              rw
        PV_kernel                          string                              rw
        PV_ramdisk                         string                              rw
        PV_args                            string                              rw
        PV_bootloader_args                 string                              rw
        PV_legacy_args                     string                              rw
        HVM_boot_policy                    string                              new
        HVM_boot_params                    string->string                      rw
        HVM_shadow_multiplier              float                               new = 1.
        platform                           string->string                      rw
        PCI_bus                            string                              rw
        other_config                       string->string                      rw
        domid                              int
        domarch                            string
        last_boot_CPU_flags                string->string                      new = empty
        is_control_domain                  bool
        metrics                            @VM_metrics
        guest_metrics                      @VM_guest_metrics
        last_booted_record                 string                              new = ""
        recommendations                    string                              rw
        xenstore_data                      string->string                      rw = empty
        ha_always_run                      bool                                new = false
        ha_restart_priority                string                              new = ""
        is_a_snapshot                      bool
        snapshot_of                        @VM
        snapshots                          @VM*                                < snapshot_of
        snapshot_time                      datetime
        transportable_snapshot_id          string
        blobs                              string->@blob
        tags                               string*                             rw = empty
        blocked_operations                 vm_operations->string               rw = empty
        snapshot_info                      string->string
        snapshot_metadata                  string
        parent                             @VM
        children                           @VM*                                < parent
        bios_strings                       string->string
        protection_policy                  @VMPP                               new = null
        is_snapshot_from_vmpp              bool                                new gone = false
        snapshot_schedule                  @VMSS                               new = null
        is_vmss_snapshot                   bool                                new = false
        appliance                          @VM_appliance                       new = null
        start_delay                        int                                 new = 0
        shutdown_delay                     int                                 new = 0
        order                              int                                 new = 0
        VGPUs                              @VGPU*                              < VM
        attached_PCIs                      @PCI*                               < attached_VMs
        suspend_SR                         @SR                                 rw = null
        version                            int                                 new = 0
        generation_id                      string                              new = 0:0
        hardware_platform_version          int                                 rw = 0
        has_vendor_device                  bool                                new = false
        requires_reboot                    bool
        reference_label                    string                              new = ""
        domain_type                        domain_type                         new = unspecified
        NVRAM                              string->string                      new = empty
        pending_guidances                  update_guidances*
        pending_guidances_recommended      update_guidances*
        pending_guidances_full             update_guidances*
    """,
    "VM_metrics": """
        uuid                               string
        memory_actual                      int
        VCPUs_number                       int
        VCPUs_utilisation                  int->float                          gone
        VCPUs_CPU                          int->int
        VCPUs_params                       string->string
        VCPUs_flags                        int->string*
        state                              string*
        start_time                         datetime
        install_time                       datetime
        last_updated                       datetime
        other_config                       string->string                      rw = empty
        hvm                                bool
        nested_virt                        bool
        nomigrate                          bool
        current_domain_type                domain_type                         = unspecified
    """,
    "VM_guest_metrics": """
        uuid                               string
        os_version                         string->string
        PV_drivers_version                 string->string
        PV_drivers_up_to_date              bool
        memory                             string->string                      gone
        disks                              string->string                      gone
        networks                           string->string
        other                              string->string
        last_updated                       datetime
        other_config                       string->string                      rw = empty
        live                               bool
        can_use_hotplug_vbd                tristate_type                       = unspecified
        can_use_hotplug_vif                tristate_type                       = unspecified
        PV_drivers_detected                bool
    """,
    "VBD": """
        uuid                               string
        allowed_operations                 vbd_operations*
        current_operations                 string->vbd_operations
        VM                                 @VM                                 new
        VDI                                @VDI                                new
        device                             string                              new = ""
        userdevice                         string                              rw
        bootable                           bool                                rw
        mode                               vbd_mode                            new
        type                               vbd_type                            rw
        unpluggable                        bool                                rw = true
        storage_lock                       bool
        empty                              bool                                new
        other_config                       string->string                      rw
        currently_attached                 bool                                new = false
        status_code                        int
        status_detail                      string
        runtime_properties                 string->string
        qos_algorithm_type                 string                              rw
        qos_algorithm_params               string->string                      rw
        qos_supported_algorithms           string*
        metrics                            @VBD_metrics                        gone
    """,
    "VBD_metrics": """
        uuid                               string
        io_read_kbs                        float                               gone
        io_write_kbs                       float                               gone
        last_updated                       datetime                            gone
        other_config                       string->string                      rw gone = empty
    """,
    "VIF": """
        uuid                               string
        allowed_operations                 vif_operations*
        current_operations                 string->vif_operations
        device                             string                              new
        network                            @network                            new
        VM                                 @VM                                 new
        MAC                                string                              new
        MTU                                int                                 new
        other_config                       string->string                      rw
        currently_attached                 bool                                new = false
        status_code                        int
        status_detail                      string
        runtime_properties                 string->string
        qos_algorithm_type                 string                              rw
        qos_algorithm_params               string->string                      rw
        qos_supported_algorithms           string*
        metrics                            @VIF_metrics                        gone
        MAC_autogenerated                  bool
        locking_mode                       vif_locking_mode                    new = network_default
        ipv4_allowed                       string*                             new = empty
        ipv6_allowed                       string*                             new = empty
        ipv4_configuration_mode            vif_ipv4_configuration_mode         = None
        ipv4_addresses                     string*
        ipv4_gateway                       string
        ipv6_configuration_mode            vif_ipv6_configuration_mode         = None
        ipv6_addresses                     string*
        ipv6_gateway                       string
    """,
    "VIF_metrics": """
        uuid                               string
        io_read_kbs                        float                               gone
        io_write_kbs                       float                               gone
        last_updated                       datetime
        other_config                       string->string                      rw = empty
    """,
    "console": """
        uuid                               string
        protocol                           console_protocol
        location                           string
        VM                                 @VM
        other_config                       string->string                      rw
    """,
    "VTPM": """
        uuid                               string
        allowed_operations                 vtpm_operations*
        current_operations                 string->vtpm_operations
        VM                                 @VM                                 new
        backend                            @VM
        persistence_backend                persistence_backend                 = xapi
        is_unique                          bool                                new = false
        is_protected                       bool
    """,
    "crashdump": """
        uuid                               string
        VM                                 @VM                                 new
        VDI                                @VDI                                new
        other_config                       string->string                      rw = empty
    """,
}
