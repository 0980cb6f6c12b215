//! Whole runs in small.
