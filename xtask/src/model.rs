//! Runs the exhaustive models of the core, further than the tests do.
//!
//! They are tests of `mainstay-core`, so that they see its rooms; the feature `planted` is on, for each model must
//! find what is planted.

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::value_of;

/// The models, by the names that `--model` takes.
const MODELS: [&str; 5] = ["chain", "paxos", "right", "owner", "fence"];

/// How far the tests go.
const AS_THE_TESTS: u32 = 1;

pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let mut bound = AS_THE_TESTS + 1;
    let mut model = None;
    let mut case = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--bound" => {
                let value = value_of("--bound", &mut rest)?;
                bound = value.parse().ok().filter(|n| *n > 0).with_context(|| {
                    format!("--bound takes a number from 1 up, such as 2, not '{value}'")
                })?;
            }
            "--model" => {
                let value = value_of("--model", &mut rest)?;
                if !MODELS.contains(&value.as_str()) {
                    bail!(
                        "there is no model '{value}'; the models are {}",
                        MODELS.join(", ")
                    );
                }
                model = Some(value.as_str());
            }
            "--case" => case = Some(value_of("--case", &mut rest)?.as_str()),
            unknown => bail!("model has no option '{unknown}'; see `cargo xtask help`"),
        }
    }
    run(bound, model, case)
}

/// Explores the models, or one of them, or the cases that have `case` in their names, within these bounds.
///
/// # Errors
/// When a property is broken, something is not reached, or what is planted is not found.
fn run(bound: u32, model: Option<&str>, case: Option<&str>) -> Result<()> {
    let test = "test --release --package mainstay-core --lib --features planted model::table";
    let mut command = Cmd::cargo(test)
        .words("-- --ignored --exact --nocapture")
        .env("MAINSTAY_MODEL_BOUND", &bound.to_string());
    if let Some(model) = model {
        command = command.env("MAINSTAY_MODEL", model);
    }
    if let Some(case) = case {
        command = command.env("MAINSTAY_MODEL_CASE", case);
    }
    command.run()
}
