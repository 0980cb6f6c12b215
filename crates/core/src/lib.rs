//! Mainstay: core.
