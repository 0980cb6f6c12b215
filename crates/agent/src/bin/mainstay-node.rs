//! Agent, guard, guest and probe as one program, for this crate's tests of real processes.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let text = |n: usize| {
        arguments
            .get(n)
            .and_then(|a| a.to_str())
            .unwrap_or_default()
    };
    let result: Result<(), Box<dyn std::error::Error>> = match (text(0), text(1)) {
        ("guest", _) => return mainstay_hypervisor::guest_main(arguments.into_iter().skip(1)),
        ("agent", "--config") => mainstay_agent::run_agent(Path::new(text(2))).map_err(Into::into),
        ("guard", "--config") => mainstay_agent::run_guard(Path::new(text(2))).map_err(Into::into),
        ("probe", "--listen") => match text(2).parse() {
            Ok(address) => mainstay_agent::probe::run(address).map_err(Into::into),
            Err(_) => Err("no address".into()),
        },
        _ => Err(
            "agent --config FILE, guard --config FILE, guest ..., probe --listen ADDRESS".into(),
        ),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut error: Option<&dyn std::error::Error> = Some(error.as_ref());
            while let Some(one) = error {
                eprintln!("{one}");
                error = one.source();
            }
            ExitCode::FAILURE
        }
    }
}
