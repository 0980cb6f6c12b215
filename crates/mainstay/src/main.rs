//! The one binary of Mainstay.
fn main() {}
