//! How a failed command ends.

pub(crate) use mainstay_lab::fail::{Context, Failure, Result};
use std::process::ExitCode;

/// Prints it on standard error and gives the exit code of a failed command.
pub(crate) fn report(failure: &Failure, json: bool) -> ExitCode {
    use std::io::Write;
    let mut err = anstream::stderr();
    let written = if json {
        writeln!(err, "{}", failure.to_json())
    } else {
        let red = crate::ui::Tone::Bad.style();
        writeln!(err, "{red}error:{red:#} {failure}")
    };
    // Nobody is left to be told when standard error is closed.
    drop(written);
    ExitCode::FAILURE
}
