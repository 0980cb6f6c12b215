//! Mainstay: hypervisor.
