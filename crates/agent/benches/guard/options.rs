//! What the command line of the guard's benchmark asks for.

use std::num::NonZeroU32;
use std::path::PathBuf;

/// All that can be asked for.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Options {
    /// Deadlines that pass in each row.
    pub(crate) rounds: u32,
    /// VMs whose rights end together, as those of one datastore do.
    pub(crate) vms: u32,
    /// Threads of each VM that compute all the time; none: one for each processor, so that wherever the guard runs, the
    /// guest also runs elsewhere.
    pub(crate) vcpus: Option<u32>,
    /// Processes that keep the processors busy; none: one for each processor.
    pub(crate) load: Option<u32>,
    /// Where run directory, images and logs go; none: memory, where there is a file system for it.
    pub(crate) dir: Option<PathBuf>,
    /// The program that runs the guard; none: the one that was built with the benchmark.
    pub(crate) program: Option<PathBuf>,
}

impl Options {
    /// Takes the arguments, without the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            rounds: 200,
            vms: 1,
            vcpus: None,
            load: None,
            dir: None,
            program: None,
        };
        let (mut is_bench, mut rounds) = (false, None);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                // Cargo says so to every benchmark, and not where it only tests that they run.
                "--bench" => is_bench = true,
                "--rounds" => rounds = Some(number(&argument, &value()?)?),
                "--vms" => options.vms = number(&argument, &value()?)?,
                "--vcpus" => options.vcpus = Some(number(&argument, &value()?)?),
                "--load" => options.load = Some(number(&argument, &value()?)?),
                "--dir" => options.dir = Some(value()?.into()),
                "--program" => options.program = Some(value()?.into()),
                unknown => {
                    return Err(format!(
                        "no option '{unknown}'; there are --rounds N, --vms N, --vcpus N, --load N, --dir DIR and --program FILE"
                    ));
                }
            }
        }
        options.rounds = rounds.unwrap_or(if is_bench { options.rounds } else { 2 });
        Ok(options)
    }
}

fn number(option: &str, text: &str) -> Result<u32, String> {
    let parsed: Result<NonZeroU32, _> = text.parse();
    parsed
        .map(NonZeroU32::get)
        .map_err(|_| format!("{option} takes a number from 1 up, such as 4, not '{text}'"))
}
