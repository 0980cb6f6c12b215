//! The programs that run a host's agent and its guard: `mainstay` runs both, and so does a small one for
//! each where it lies beside, which takes less memory (`docs/decisions/0012-*.md`).
//!
//! ```text
//! mainstay agent --config FILE   becomes   mainstay-agent agent --config FILE --build ID
//! mainstay-agent starts                    mainstay-guard guard --config FILE --build ID
//! mainstay-guard starts again              mainstay agent --config FILE
//! a small one of another build   becomes   mainstay ROLE --config FILE --whole
//! ```
//! Never here: what an agent or a guard does.

use crate::twin::Role;
use mainstay_hypervisor::launcher;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// A hash of what agent and guard are built from: two programs that say the same are of one piece.
const BUILD: &str = env!("MAINSTAY_BUILD");
/// Stack of the guard's threads that name none: all of it is locked in memory.
const GUARD_STACK_BYTES: &str = "131072";
/// The name by which the standard library takes the stack of threads that name none.
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// The small program of a role beside the whole one. It is looked up by the whole program's name
/// (`mainstay`, `mainstay-guard`), so that a program under another name never starts one that was built from
/// something else.
fn small_program(whole: &Path, role: Role) -> Option<PathBuf> {
    let mut name = whole.file_name()?.to_owned();
    name.push("-");
    name.push(role.name());
    let small = whole.with_file_name(name);
    small.is_file().then_some(small)
}

/// The whole program, as a small one finds it from its own: see [`small_program`].
pub(crate) fn whole_program(own: &Path) -> PathBuf {
    let name = own.file_name().and_then(|name| name.to_str());
    let whole = name.and_then(|name| {
        let suffix = |role: Role| name.strip_suffix(role.name())?.strip_suffix('-');
        suffix(Role::Agent).or_else(|| suffix(Role::Guard))
    });
    whole
        .map(|name| own.with_file_name(name))
        .filter(|whole| whole.is_file())
        .unwrap_or_else(|| own.to_owned())
}

fn command(program: &Path, role: Role, config: &Path) -> Command {
    let mut command = Command::new(program);
    match role {
        Role::Guard => command.env(STACK_VARIABLE, GUARD_STACK_BYTES),
        // What suits the guard is not for the agent that it starts again.
        Role::Agent => command.env_remove(STACK_VARIABLE),
    };
    command.arg(role.name()).arg("--config").arg(config);
    command
}

fn small_command(small: &Path, role: Role, config: &Path) -> Command {
    let mut command = command(small, role, config);
    command.args(["--build", BUILD]);
    command
}

/// Starts the other process; it outlives this one. `whole` is the whole program.
pub(crate) fn start(whole: &Path, role: Role, config: &Path, log_dir: &Path) -> io::Result<()> {
    // `mainstay agent` becomes the small program by itself.
    if let Some(small) = small_program(whole, role).filter(|_| role == Role::Guard) {
        match spawn(small_command(&small, role, config), role, log_dir) {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(program = %small.display(), %error, "not started; trying the whole program");
            }
        }
    }
    spawn(command(whole, role, config), role, log_dir)
}

fn spawn(mut command: Command, role: Role, log_dir: &Path) -> io::Result<()> {
    let log = log_dir.join(format!("{}.stderr", role.name()));
    let mut child = launcher::run(move || {
        let errors = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(log);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.map_or_else(|_| Stdio::null(), Stdio::from))
            .spawn()
    })?;
    // Somebody must collect it when it ends.
    std::thread::Builder::new()
        .name("reaper".into())
        .spawn(move || child.wait())?;
    Ok(())
}

/// Becomes the small program of the agent, when it lies beside this one; returns when it does not.
pub fn become_small_agent(config: &Path) {
    become_small(Role::Agent, config);
}

/// Becomes the small program of the guard, when it lies beside this one; returns when it does not.
pub fn become_small_guard(config: &Path) {
    become_small(Role::Guard, config);
}

fn become_small(role: Role, config: &Path) {
    let Some(small) = own_program().and_then(|own| small_program(&own, role)) else {
        return;
    };
    let error = small_command(&small, role, config).exec();
    eprintln!(
        "warning: {} cannot be run ({error}); going on as the whole program",
        small.display()
    );
}

fn own_program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

/// The agent's small program: `agent --config FILE`, and `guest` for the guests that it starts.
#[must_use]
pub fn small_agent_main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "guest").is_some() {
        return mainstay_hypervisor::guest_main(arguments);
    }
    small_main(Role::Agent, arguments, |config| {
        crate::run_agent(config).map_err(Into::into)
    })
}

/// The guard's small program: `guard --config FILE`.
#[must_use]
pub fn small_guard_main() -> ExitCode {
    small_main(Role::Guard, std::env::args_os().skip(1), |config| {
        crate::run_guard(config).map_err(Into::into)
    })
}

fn small_main(
    role: Role,
    arguments: impl Iterator<Item = OsString>,
    run: impl FnOnce(&Path) -> Result<(), Box<dyn Error>>,
) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let Some(asked) = Asked::parse(role, &arguments) else {
        let role = role.name();
        eprintln!("usage: mainstay-{role} {role} --config FILE (`mainstay {role}` runs it)");
        return ExitCode::from(2);
    };
    if asked.build.is_some_and(|build| build != BUILD) {
        become_whole(role, asked.config);
    }
    match run(asked.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the {} cannot go on", role.name());
            let mut why: Option<&dyn Error> = Some(error.as_ref());
            while let Some(error) = why {
                eprintln!("  {error}");
                why = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// What a small program is asked.
#[derive(PartialEq, Eq, Debug)]
struct Asked<'a> {
    config: &'a Path,
    /// What the one who asks was built from.
    build: Option<&'a OsStr>,
}

impl<'a> Asked<'a> {
    fn parse(role: Role, arguments: &'a [OsString]) -> Option<Self> {
        let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        let (config, build) = match words.as_slice() {
            [first, option, config] if *first == role.name() && *option == "--config" => {
                (config, None)
            }
            [first, option, config, another, build]
                if *first == role.name() && *option == "--config" && *another == "--build" =>
            {
                (config, Some(*build))
            }
            _ => return None,
        };
        Some(Self {
            config: Path::new(*config),
            build,
        })
    }
}

/// This program was left from another build: the whole one runs what was asked for. Returns when it cannot.
fn become_whole(role: Role, config: &Path) {
    let Some(own) = own_program() else { return };
    let whole = whole_program(&own);
    if whole == own {
        return;
    }
    let error = command(&whole, role, config).arg("--whole").exec();
    eprintln!(
        "warning: {} is of another build, and {} cannot be run ({error}); going on with the former",
        own.display(),
        whole.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_programs_are_found_beside_the_whole_one_by_its_name() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["mainstay", "other"] {
            std::fs::write(at(name), b"").expect("written");
        }
        for role in [Role::Agent, Role::Guard] {
            let small = at(&format!("mainstay-{}", role.name()));
            assert_eq!(small_program(&at("mainstay"), role), None);
            std::fs::write(&small, b"").expect("written");
            assert_eq!(small_program(&at("mainstay"), role), Some(small.clone()));
            assert_eq!(
                small_program(&at("other"), role),
                None,
                "it may have been built from something else"
            );
            assert_eq!(whole_program(&small), at("mainstay"));
            let alone = at(&format!("alone-{}", role.name()));
            assert_eq!(whole_program(&alone), alone, "there is no whole one beside");
        }
        assert_eq!(whole_program(&at("mainstay")), at("mainstay"));
    }

    #[test]
    fn a_small_program_takes_its_role_a_configuration_and_a_build() {
        let parse = |text: &str| {
            let arguments: Vec<OsString> = text.split(' ').map(OsString::from).collect();
            Asked::parse(Role::Guard, &arguments).map(|asked| {
                let build = asked.build.map(|b| b.to_string_lossy().into_owned());
                (asked.config.to_owned(), build)
            })
        };
        let config = PathBuf::from("/c");
        assert_eq!(parse("guard --config /c"), Some((config.clone(), None)));
        assert_eq!(
            parse("guard --config /c --build 12"),
            Some((config, Some("12".to_owned())))
        );
        for wrong in [
            "",
            "guard",
            "agent --config /c",
            "guard --config",
            "guard --config /c --build",
            "guard --config /c --whole x",
            "guard --build 12 --config /c",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_build_has_a_name() {
        assert_eq!(BUILD.len(), 16);
        assert!(u64::from_str_radix(BUILD, 16).is_ok_and(|hash| hash != 0));
    }
}
