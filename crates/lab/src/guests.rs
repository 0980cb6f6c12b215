use crate::fail::Result;
use std::path::Path;
pub fn crash(_: &Path, _: &str) -> Result<()> {
    Ok(())
}
pub fn shutdown(_: &Path, _: &str) -> Result<()> {
    Ok(())
}
