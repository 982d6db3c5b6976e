"""The classes of what VMs belong to: appliances, snapshot schedules, recovery tasks.

The notation is explained in `simulator.model.schema`.
"""

from __future__ import annotations

DECLARATIONS = {
    "VMPP": """
        uuid                               string                              gone
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        is_policy_enabled                  bool                                rw gone = true
        backup_type                        vmpp_backup_type                    rw gone = snapshot
        backup_retention_value             int                                 new gone = 7
        backup_frequency                   vmpp_backup_frequency               new gone = daily
        backup_schedule                    string->string                      new gone = empty
        is_backup_running                  bool                                gone
        backup_last_run_time               datetime                            gone
        archive_target_type                vmpp_archive_target_type            new gone = none
        archive_target_config              string->string                      new gone = empty
        archive_frequency                  vmpp_archive_frequency              new gone = never
        archive_schedule                   string->string                      new gone = empty
        is_archive_running                 bool                                gone
        archive_last_run_time              datetime                            gone
        VMs                                @VM*                                gone < protection_policy
        is_alarm_enabled                   bool                                new gone = false
        alarm_config                       string->string                      new gone = empty
        recent_alerts                      string*                             gone
    """,
    "VMSS": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        enabled                            bool                                rw = true
        type                               vmss_type                           new
        retained_snapshots                 int                                 new = 7
        frequency                          vmss_frequency                      new
        schedule                           string->string                      new = empty
        last_run_time                      datetime
        VMs                                @VM*                                < snapshot_schedule
    """,
    "VM_appliance": """
        uuid                               string
        name_label                         string                              rw = ""
        name_description                   string                              rw = ""
        allowed_operations                 vm_appliance_operation*
        current_operations                 string->vm_appliance_operation
        VMs                                @VM*                                < appliance
    """,
    "DR_task": """
        uuid                               string
        introduced_SRs                     @SR*                                < introduced_by
    """,
}
