//! `mainstay sim bench`: how fast the simulator is, on the clusters that its figures name.

use crate::scenarios::{Complaint, UNREADABLE, line, millis};
use clap::Args;
use mainstay_sim::bench::{Wanted, benchmarks};
use mainstay_sim::{Options, SECOND};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, Clone, Args)]
pub(super) struct BenchArgs {
    /// Only the benchmark of this name
    #[arg(long)]
    only: Option<String>,
}

/// Processor time of this thread: what a run costs where others use the machine too.
fn processor_ms() -> i64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0, |t| t.num_milliseconds())
}

/// Runs the command: 0 when every run ended well, whatever the figures; a slow machine is no failure.
pub(super) fn run(args: &BenchArgs, json: bool) -> ExitCode {
    let mut chosen = benchmarks();
    if let Some(only) = &args.only {
        let names: Vec<String> = chosen.iter().map(|b| format!("\"{}\"", b.name)).collect();
        chosen.retain(|bench| bench.name == only);
        if chosen.is_empty() {
            let what = format!(
                "there is no benchmark \"{only}\"; there are {}",
                names.join(", ")
            );
            return Complaint::at("--only", what).tell(json, UNREADABLE);
        }
    }
    let mut sound = true;
    for bench in chosen {
        let (began, busy) = (Instant::now(), processor_ms());
        let result = mainstay_sim::run(&bench.scenario, &Options::default());
        let wall_ms = millis(began).max(1);
        let processor_ms = processor_ms() - busy;
        sound &= result.pass();
        let virtual_s = result.virtual_time / SECOND;
        let rate = virtual_s * 1000 / wall_ms;
        let (wanted, met) = match bench.wanted {
            Wanted::WallSeconds(most) => (format!("under {most} s"), wall_ms < most * 1000),
            Wanted::Rate(least) => (
                format!("at least {least} virtual seconds a second"),
                rate >= least,
            ),
        };
        if json {
            let text = serde_json::json!({
                "type": "bench", "name": bench.name, "pass": result.pass(), "virtual_s": virtual_s,
                "wall_ms": wall_ms, "processor_ms": processor_ms, "rate": rate, "steps": result.steps, "wanted": wanted, "met": met,
            });
            line(&text.to_string());
        } else {
            let mark = if met { "✓" } else { "✗" };
            let seconds = wall_ms as f64 / 1000.0;
            let busy = processor_ms as f64 / 1000.0;
            let run = if result.pass() {
                ""
            } else {
                "  (the run itself failed)"
            };
            line(&format!(
                "{mark} {:<22} {virtual_s} virtual seconds in {seconds:.2} s ({busy:.2} s of processor time), {rate} a second, {} steps; wanted: {wanted}{run}",
                bench.name, result.steps
            ));
        }
    }
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
