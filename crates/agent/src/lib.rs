//! Mainstay: agent.
