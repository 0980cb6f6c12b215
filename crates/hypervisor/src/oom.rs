//! The score by which the kernel's OOM killer chooses among processes: an agent and its guard are protected, their
//! guests have the score that was chosen for them.
//!
//! A score lower than the one that a process was started with needs `CAP_SYS_RESOURCE` (proc(5)).

use std::fs;
use std::io;

/// The score of what the OOM killer never takes (`OOM_SCORE_ADJ_MIN` of `linux/oom.h`).
pub const PROTECTED: i16 = -1000;

/// Gives a process a score, from -1000 (never taken) to 1000 (taken first).
///
/// # Errors
/// The process is gone, the score is none, or the right is missing to give it so low a one.
pub fn set_oom_score(pid: i32, score: i16) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

/// Gives a guest the score that was chosen; what is to be said where that is refused.
pub(crate) fn of_guest(pid: i32, score: i16) -> Option<String> {
    let error = set_oom_score(pid, score).err()?;
    // One that is gone already says so itself.
    if matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOENT | nix::libc::ESRCH)
    ) {
        return None;
    }
    Some(format!(
        "guests do not get the OOM score {score} that agent.toml names ({error}): allow CAP_SYS_RESOURCE, or choose one \
         that is not below the agent's own"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(pid: u32) -> String {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score")
    }

    #[test]
    fn a_score_is_given_and_a_refusal_is_said() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .expect("a process");
        let pid = child.id().cast_signed();
        assert_eq!(of_guest(pid, 300), None);
        assert_eq!(score(child.id()).trim(), "300");
        match set_oom_score(pid, PROTECTED) {
            // Where the right is there, it is used.
            Ok(()) => assert_eq!(score(child.id()).trim(), "-1000"),
            Err(_) => {
                let said = of_guest(pid, -500).expect("refused");
                assert!(
                    said.contains("-500") && said.contains("CAP_SYS_RESOURCE"),
                    "{said}"
                );
                assert_eq!(score(child.id()).trim(), "300");
            }
        }
        assert!(set_oom_score(pid, 1001).is_err(), "there is no such score");
        child.kill().expect("killed");
        child.wait().expect("gone");
        assert_eq!(of_guest(pid, 0), None, "nobody is left to have one");
    }
}
