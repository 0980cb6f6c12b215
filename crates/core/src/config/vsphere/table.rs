//! The options of vSphere HA. Their names, units and defaults are those that VMware documents for the
//! cluster's advanced options (4.x to 8.0), and the names of the cluster's settings in its API where an
//! admin may have met them in scripts.

use super::VsphereOption;
use super::convert::Conversion::{self, Address, Milliseconds, Number, Seconds, Truth, Words};

/// The greatest time that is taken, in seconds: a day.
const DAY: u32 = 86_400;

const ADMISSION: &str = "admission control is not part of this release";
const MONITORING: &str = "the monitoring of guests and applications is not part of this release";
const FAULT_TOLERANCE: &str = "Mainstay runs no fault-tolerant pairs of VMs";
const MANAGER: &str =
    "no manager takes part in a failover, an election or a change of what is protected";
const LOGS: &str = "an agent writes a log file each day and keeps a week of them; MAINSTAY_LOG sets what is logged";
const COMPONENT: &str = "the reactions of component protection are not part of this release";
const KEPT: &str = "of the cluster; a VM has none of its own";

const fn equal(name: &'static str, conversion: Conversion, note: &'static str) -> VsphereOption {
    let conversion = Some(conversion);
    VsphereOption {
        name,
        note,
        conversion,
    }
}

const fn refused(name: &'static str, why: &'static str) -> VsphereOption {
    let (note, conversion) = (why, None);
    VsphereOption {
        name,
        note,
        conversion,
    }
}

const fn seconds(key: &'static str, low: u32) -> Conversion {
    Seconds {
        key,
        low,
        high: DAY,
    }
}

/// Every option that is known, by subject.
pub const OPTIONS: &[VsphereOption] = &[
    // Isolation.
    equal(
        "das.isolationAddress[0-10]",
        Address {
            key: "isolation_addresses",
        },
        "up to ten, whether they are counted from 0 or from 1; each is added to the list; addresses, as nothing depends on DNS",
    ),
    equal(
        "das.useDefaultIsolationAddress",
        Truth {
            key: "use_default_isolation_address",
        },
        "the default gateway of each management network",
    ),
    equal(
        "das.isolationShutdownTimeout",
        seconds("isolation_shutdown_timeout", 0),
        "",
    ),
    equal(
        "das.config.fdm.isolationPolicyDelaySec",
        seconds("isolation_policy_delay", 0),
        "0 by default, as in vSphere 5.0; from 5.1 on vSphere takes no less than 30",
    ),
    equal(
        "das.powerOffOnIsolation",
        Words(&[
            ("true", &[("isolation_response", "power_off")]),
            ("false", &[("isolation_response", "leave_powered_on")]),
        ]),
        "VirtualCenter 2; later versions call it isolationResponse, which also knows the clean shutdown",
    ),
    equal(
        "isolationResponse",
        Words(&[
            ("none", &[("isolation_response", "leave_powered_on")]),
            ("powerOff", &[("isolation_response", "power_off")]),
            ("shutdown", &[("isolation_response", "shut_down")]),
        ]),
        "of the cluster; a VM's own stands with the VM",
    ),
    // Hosts: signs of life and verdicts.
    equal(
        "hostMonitoring",
        Words(&[
            ("enabled", &[("host_monitoring", "true")]),
            ("disabled", &[("host_monitoring", "false")]),
        ]),
        "",
    ),
    equal(
        "das.config.fdm.hostTimeout",
        seconds("unreachable", 1),
        "must fit the other timers; a profile sets them all",
    ),
    equal(
        "das.failureDetectionInterval",
        Milliseconds {
            key: "network_heartbeat",
        },
        "vSphere 4; must fit the other timers",
    ),
    refused(
        "das.failureDetectionTime",
        "vSphere 5.0 took it away, as one time cannot stand for the timers that follow from it; choose a profile, or set unreachable, dead and isolation_declare",
    ),
    refused(
        "das.config.fdm.deadIcmpPingInterval",
        "a silent host is pinged again as soon as the ping before has ended",
    ),
    refused(
        "das.config.fdm.icmpPingTimeout",
        "a ping has until the verdict; dead_without_datastores and dead say when that is",
    ),
    refused(
        "das.config.fdm.policy.unknownStateMonitorPeriod",
        "a VM that failed is restarted as soon as its lock shows that nothing of it runs; there is nothing to wait for",
    ),
    equal(
        "das.heartbeatDsPerHost",
        Number {
            key: "heartbeat_datastores_per_host",
            low: 2,
            high: 5,
        },
        "the setting itself also takes 0 and 1",
    ),
    equal(
        "das.ignoreInsufficientHbDatastore",
        Truth {
            key: "ignore_insufficient_heartbeat_datastores",
        },
        "",
    ),
    equal(
        "das.ignoreRedundantNetWarning",
        Truth {
            key: "ignore_redundant_network_warning",
        },
        "",
    ),
    refused(
        "das.allowNetwork[0-9]",
        "the management networks are those whose addresses a host's configuration names",
    ),
    refused(
        "das.bypassNetCompatCheck",
        "hosts need no networks of the same name, so that none are compared",
    ),
    refused(
        "fdm.nodeGoodness",
        "the number of datastores and then the id alone decide an election; a host in maintenance leads only where no other does",
    ),
    // Restarts.
    equal(
        "das.maxVmRestartCount",
        Number {
            key: "max_restart_attempts",
            low: 0,
            high: 100,
        },
        "retries after the first attempt, as in vSphere 4; from 5.0 on vSphere counts the first attempt too, so that the same number gives one attempt more here; -1, for ever, is refused, as restarts must end",
    ),
    equal(
        "das.perHostConcurrentFailoversLimit",
        Number {
            key: "concurrent_restarts_per_host",
            low: 1,
            high: 1000,
        },
        "",
    ),
    refused(
        "das.maskCleanShutdownEnabled",
        "whether a VM should run is part of its lock, so that one lost with its storage is never taken for one that was switched off",
    ),
    refused(
        "das.respectVmVmAntiAffinityRules",
        "each rule says itself whether it is mandatory, and a mandatory one is always kept",
    ),
    refused(
        "das.respectVmHostSoftAffinityRules",
        "a rule that is not mandatory is always kept where it can be",
    ),
    refused(
        "das.reregisterRestartDisabledVMs",
        "VMs are not registered with a host: each host knows all of them, and whoever wins the lock may run one",
    ),
    refused(
        "das.defaultFailoverHost",
        "dedicated failover hosts belong to admission control, which is not part of this release",
    ),
    refused("das.maxFtVmRestartCount", FAULT_TOLERANCE),
    refused("das.maxFtVmsPerHost", FAULT_TOLERANCE),
    refused("das.maxFtVCpusPerHost", FAULT_TOLERANCE),
    refused("das.includeFTcomplianceChecks", FAULT_TOLERANCE),
    refused("das.config.fdm.ft.cleanupTimeout", FAULT_TOLERANCE),
    refused(
        "das.config.fdm.storageVmotionCleanupTimeout",
        "disks are not moved between datastores while their VM runs",
    ),
    // Reports and resources of the agent.
    refused(
        "das.config.fdm.reportFailoverFailEvent",
        "each failed restart is always reported, with its reason",
    ),
    refused(
        "das.config.fdm.stateLogInterval",
        "a change is logged when it happens; `mainstay status` shows the state at any time",
    ),
    refused(
        "das.config.fdm.event.maxMasterEvents",
        "an agent keeps its events in a file of its own, of bounded size, whatever its role",
    ),
    refused(
        "das.config.fdm.event.maxSlaveEvents",
        "an agent keeps its events in a file of its own, of bounded size, whatever its role",
    ),
    refused(
        "das.config.fdm.memReservationMB",
        "the memory of the agent is the operating system's to limit",
    ),
    refused("das.config.log.maxFileNum", LOGS),
    refused("das.config.log.maxFileSize", LOGS),
    refused("das.config.log.directory", LOGS),
    refused("das.config.log.outputToFiles", LOGS),
    // Storage failures.
    equal(
        "vmStorageProtectionForPDL",
        Words(&[
            ("disabled", &[("pdl_response", "disabled")]),
            ("warning", &[("pdl_response", "warn")]),
            ("restartAggressive", &[("pdl_response", "restart")]),
        ]),
        KEPT,
    ),
    equal(
        "vmStorageProtectionForAPD",
        Words(&[
            ("disabled", &[("apd_response", "disabled")]),
            ("warning", &[("apd_response", "warn")]),
            (
                "restartConservative",
                &[("apd_response", "restart_conservative")],
            ),
            (
                "restartAggressive",
                &[("apd_response", "restart_aggressive")],
            ),
        ]),
        KEPT,
    ),
    equal("vmTerminateDelayForAPDSec", seconds("apd_delay", 0), KEPT),
    equal(
        "vmReactionOnAPDCleared",
        Words(&[
            ("none", &[("apd_cleared_response", "none")]),
            ("reset", &[("apd_cleared_response", "reset")]),
        ]),
        KEPT,
    ),
    equal(
        "vmComponentProtecting",
        Words(&[(
            "disabled",
            &[("apd_response", "disabled"), ("pdl_response", "disabled")],
        )]),
        "enabled is not taken: name the reactions, vmStorageProtectionForPDL and vmStorageProtectionForAPD",
    ),
    equal("Misc.APDTimeout", seconds("apd_timeout", 1), KEPT),
    equal(
        "disk.terminateVMOnPDLDefault",
        Words(&[
            ("true", &[("pdl_response", "restart")]),
            ("false", &[("pdl_response", "warn")]),
        ]),
        KEPT,
    ),
    refused(
        "enableAPDTimeoutForHosts",
        "hosts have no time-out of their own to switch on: apd_timeout holds for all",
    ),
    refused("das.maxResets", COMPONENT),
    refused("das.maxTerminates", COMPONENT),
    refused("das.terminateRetryIntervalSec", COMPONENT),
    refused(
        "VSAN.AutoTerminateGhostVm",
        "there is no vSAN; a VM without access to its storage is frozen, and killed when another host has its lock",
    ),
    // Admission control.
    refused("das.slotCpuInMHz", ADMISSION),
    refused("das.slotMemInMB", ADMISSION),
    refused("das.vmCpuMinMHz", ADMISSION),
    refused("das.vmMemoryMinMB", ADMISSION),
    refused("vpxd.das.slotCpuMinMHz", ADMISSION),
    refused("vpxd.das.slotMemMinMB", ADMISSION),
    refused("admissionControlEnabled", ADMISSION),
    refused("failoverLevel", ADMISSION),
    refused("failoverHosts", ADMISSION),
    refused("cpuFailoverResourcesPercent", ADMISSION),
    refused("memoryFailoverResourcesPercent", ADMISSION),
    refused("autoComputePercentages", ADMISSION),
    refused("resourceReductionToToleratePercent", ADMISSION),
    refused("pmemFailoverEnabled", ADMISSION),
    // Monitoring of guests.
    refused("vmMonitoring", MONITORING),
    refused("das.iostatsInterval", MONITORING),
    refused("das.failureInterval", MONITORING),
    refused("das.minUptime", MONITORING),
    refused("das.maxFailures", MONITORING),
    refused("das.maxFailureWindow", MONITORING),
    // The manager.
    refused("vpxd.das.electionWaitTimeSec", MANAGER),
    refused("vpxd.das.reportNoMasterSec", MANAGER),
    refused("vpxd.das.sendProtectListIntervalSec", MANAGER),
    refused("vpxd.das.completeMetadataUpdateIntervalSec", MANAGER),
    refused(
        "vpxd.das.heartbeatPanicMaxTimeout",
        "it belongs to the agents of vSphere 4; a lost host's locks are broken after `break`",
    ),
    refused(
        "vpxd.das.aamMemoryLimit",
        "it belongs to the agents of vSphere 4; the memory of the agent is the operating system's to limit",
    ),
];
