"""The classes of hardware that VMs take over. The notation is explained in `simulator.model.schema`."""

from __future__ import annotations

DECLARATIONS = {
    "PCI": """
        uuid                               string
        class_name                         string                              new = ""
        vendor_name                        string                              new = ""
        device_name                        string                              new = ""
        host                               @host                               new = null
        pci_id                             string                              new = ""
        dependencies                       @PCI*
        other_config                       string->string                      rw = empty
        subsystem_vendor_name              string                              new = ""
        subsystem_device_name              string                              new = ""
        driver_name                        string                              new = ""
        attached_VMs                       @VM*                                hidden < attached_PCIs
    """,
    "PGPU": """
        uuid                               string
        PCI                                @PCI                                new = null
        GPU_group                          @GPU_group                          new = null
        host                               @host
        other_config                       string->string                      rw = empty
        supported_VGPU_types               @VGPU_type*                         < supported_on_PGPUs
        enabled_VGPU_types                 @VGPU_type*                         < enabled_on_PGPUs
        resident_VGPUs                     @VGPU*                              < resident_on
        supported_VGPU_max_capacities      @VGPU_type->int
        dom0_access                        pgpu_dom0_access                    = enabled
        is_system_display_device           bool
        compatibility_metadata             string->string
    """,
    "GPU_group": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        PGPUs                              @PGPU*                              < GPU_group
        VGPUs                              @VGPU*                              < GPU_group
        GPU_types                          string*
        other_config                       string->string                      rw = empty
        allocation_algorithm               allocation_algorithm                rw = depth_first
        supported_VGPU_types               @VGPU_type*                         < supported_on_GPU_groups
        enabled_VGPU_types                 @VGPU_type*                         < enabled_on_GPU_groups
    """,
    "VGPU": """
        uuid                               string
        VM                                 @VM
        GPU_group                          @GPU_group
        device                             string                              = 0
        currently_attached                 bool
        other_config                       string->string                      rw = empty
        type                               @VGPU_type
        resident_on                        @PGPU
        scheduled_to_be_resident_on        @PGPU
        compatibility_metadata             string->string
        extra_args                         string                              rw = ""
        PCI                                @PCI
    """,
    "VGPU_type": """
        uuid                               string
        vendor_name                        string                              new = ""
        model_name                         string                              new = ""
        framebuffer_size                   int                                 new = 0
        max_heads                          int                                 new = 0
        max_resolution_x                   int                                 new = 0
        max_resolution_y                   int                                 new = 0
        supported_on_PGPUs                 @PGPU*                              < supported_VGPU_types
        enabled_on_PGPUs                   @PGPU*                              < enabled_VGPU_types
        VGPUs                              @VGPU*                              < type
        supported_on_GPU_groups            @GPU_group*                         < supported_VGPU_types
        enabled_on_GPU_groups              @GPU_group*                         < enabled_VGPU_types
        implementation                     vgpu_type_implementation            new = passthrough
        identifier                         string                              new = ""
        experimental                       bool                                new = false
        compatible_types_in_vm             @VGPU_type*
    """,
    "PUSB": """
        uuid                               string
        USB_group                          @USB_group                          new = null
        host                               @host                               new = null
        path                               string                              new = ""
        vendor_id                          string                              new = ""
        vendor_desc                        string                              new = ""
        product_id                         string                              new = ""
        product_desc                       string                              new = ""
        serial                             string                              new = ""
        version                            string                              new = ""
        description                        string                              new = ""
        passthrough_enabled                bool
        other_config                       string->string                      rw = empty
        speed                              float                               new = -1.
    """,
    "USB_group": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        PUSBs                              @PUSB*                              < USB_group
        VUSBs                              @VUSB*                              < USB_group
        other_config                       string->string                      rw = empty
    """,
    "VUSB": """
        uuid                               string
        allowed_operations                 vusb_operations*
        current_operations                 string->vusb_operations
        VM                                 @VM
        USB_group                          @USB_group
        other_config                       string->string                      rw = empty
        currently_attached                 bool
    """,
}
