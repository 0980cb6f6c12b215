//! Mainstay: sim.
