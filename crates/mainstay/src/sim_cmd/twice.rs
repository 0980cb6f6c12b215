//! `mainstay sim twice`: a seed means one run, in every process.

use super::{LimitArgs, complain, line};
use clap::Args;
use mainstay_sim::Options;
use mainstay_sim::campaign;
use std::process::ExitCode;

#[derive(Debug, Clone, Args)]
pub(super) struct TwiceArgs {
    /// The seed
    #[arg(long)]
    seed: u64,
    #[command(flatten)]
    limits: LimitArgs,
}

/// The whole trace of one seed as bytes: what `twice` compares.
pub(super) fn run(args: &TwiceArgs) -> ExitCode {
    if std::env::var_os("MAINSTAY_SIM_TRACE").is_some() {
        let scenario = campaign::draw(args.seed, &args.limits.limits());
        let result = mainstay_sim::run(&scenario, &Options::default());
        for text in mainstay_sim::json_lines(&result) {
            line(&text);
        }
        line(&mainstay_sim::result_json(&scenario, &result, 0));
        line(&format!(
            "{{\"type\":\"steps\",\"steps\":{}}}",
            result.steps
        ));
        return ExitCode::SUCCESS;
    }
    let once = || -> std::io::Result<Vec<u8>> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["sim", "twice", "--seed", &args.seed.to_string()]);
        command.args(args.limits.replay().split_whitespace());
        let output = command.env("MAINSTAY_SIM_TRACE", "1").output()?;
        if !output.status.success() {
            return Err(std::io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        Ok(output.stdout)
    };
    let (first, second) = match (once(), once()) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(error), _) | (_, Err(error)) => {
            complain(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if first == second {
        line(&format!(
            "seed {}: two processes, the same {} bytes",
            args.seed,
            first.len()
        ));
        return ExitCode::SUCCESS;
    }
    let (first, second) = (
        String::from_utf8_lossy(&first),
        String::from_utf8_lossy(&second),
    );
    let different = first
        .lines()
        .zip(second.lines())
        .enumerate()
        .find(|(_, (a, b))| a != b);
    match different {
        Some((number, (a, b))) => {
            line(&format!(
                "seed {}: line {} differs\n  {a}\n  {b}",
                args.seed,
                number + 1
            ));
        }
        None => line(&format!("seed {}: one trace is longer", args.seed)),
    }
    ExitCode::FAILURE
}
