//! The management networks of a run: a switch in user space for each, whose cables lose, delay and drop.
