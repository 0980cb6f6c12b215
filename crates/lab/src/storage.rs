//! The shared storage of a run: a file system in user space over a directory, that fails for one host or all.
