//! `mainstay sim twice`: a seed means one run, in every process.

use super::LimitArgs;
use crate::scenarios::{Complaint, line};
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
pub(super) fn run(args: &TwiceArgs, json: bool) -> ExitCode {
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
            return Complaint::new(error).tell(json, 1);
        }
    };
    let (same, bytes) = (first == second, first.len());
    let different = if same {
        None
    } else {
        first_difference(
            &String::from_utf8_lossy(&first),
            &String::from_utf8_lossy(&second),
        )
    };
    let seed = args.seed;
    if json {
        let number = different.as_ref().map(|(number, _, _)| number);
        let value = serde_json::json!({
            "type": "twice", "seed": seed, "same": same, "bytes": bytes, "line": number,
        });
        line(&value.to_string());
    } else if same {
        line(&format!(
            "seed {seed}: two processes, the same {bytes} bytes"
        ));
    } else {
        match different {
            Some((number, a, b)) => {
                line(&format!("seed {seed}: line {number} differs\n  {a}\n  {b}"));
            }
            None => line(&format!("seed {seed}: one trace is longer")),
        }
    }
    ExitCode::from(u8::from(!same))
}

/// The first line that is not the same, counted from 1; none: one trace is the beginning of the other.
fn first_difference(first: &str, second: &str) -> Option<(usize, String, String)> {
    let pairs = first.lines().zip(second.lines()).zip(1..);
    let mut different = pairs.filter(|((a, b), _)| a != b);
    let ((a, b), number) = different.next()?;
    Some((number, a.to_owned(), b.to_owned()))
}
