//! The hypervisor drivers of this host.

use crate::config::{AgentFile, DriverKind};
use mainstay_hypervisor::{EmbeddedDriver, EmbeddedOptions, Hypervisor, QemuDriver, QemuOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All drivers by kind.
pub(crate) type Drivers = BTreeMap<DriverKind, Arc<dyn Hypervisor>>;

/// Makes the drivers; starts nothing.
pub(crate) fn make(file: &AgentFile) -> Drivers {
    let embedded = EmbeddedDriver::new(EmbeddedOptions {
        program: file.program.clone(),
        ..EmbeddedOptions::default()
    });
    let mut qemu_options = QemuOptions::default();
    if let Some(program) = &file.qemu {
        qemu_options.program.clone_from(program);
    }
    let qemu = QemuDriver::new(qemu_options);
    let mut drivers = Drivers::new();
    drivers.insert(DriverKind::Embedded, Arc::new(embedded));
    drivers.insert(DriverKind::Qemu, Arc::new(qemu));
    drivers
}
