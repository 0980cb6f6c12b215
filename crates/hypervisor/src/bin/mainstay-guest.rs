//! The processes that the contract suite starts: an embedded guest, an agent
//! to be killed, and a process whose first thread ends before the others.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use mainstay_hypervisor::{
    CgroupPlacement, EmbeddedDriver, EmbeddedOptions, Hypervisor, QemuDriver, QemuOptions, VmSpec,
    guest_main,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|name| name.to_str()) {
        // The driver's first argument, as for the one binary.
        Some("guest") => guest_main(arguments),
        Some("agent") => agent(&arguments.map(PathBuf::from).collect::<Vec<_>>()),
        Some("leaderless") => leaderless(),
        _ => ExitCode::from(64),
    }
}

/// Starts a guest, says its pid and waits to be killed.
fn agent(arguments: &[PathBuf]) -> ExitCode {
    let [driver, run_dir, image] = arguments else {
        return ExitCode::from(64);
    };
    let driver: Box<dyn Hypervisor> = if driver.as_os_str() == "qemu" {
        Box::new(QemuDriver::new(QemuOptions::default()))
    } else {
        Box::new(EmbeddedDriver::new(EmbeddedOptions::default()))
    };
    let spec = VmSpec {
        vm: "vm".to_owned(),
        generation: 1,
        image: image.clone(),
        memory_mb: 16,
        options: std::collections::BTreeMap::new(),
        run_dir: run_dir.clone(),
        cgroup: CgroupPlacement::Off,
        oom_score_adj: 0,
    };
    match driver
        .prepare(&spec)
        .map(|process| (process, driver.resume("vm")))
    {
        Ok((process, Ok(()))) => {
            let _ = writeln!(std::io::stdout(), "{}", process.pid);
            let _ = std::io::stdin().read(&mut [0]);
            ExitCode::SUCCESS
        }
        other => {
            eprintln!("{other:?}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves a zombie as thread group leader, and a thread that lives.
fn leaderless() -> ExitCode {
    std::thread::spawn(|| {
        // Until the end of its input.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    #[expect(unsafe_code, reason = "nothing safe ends the first thread alone")]
    // SAFETY: ends this thread at once; nothing on its stack is used by the other.
    unsafe {
        nix::libc::syscall(nix::libc::SYS_exit, 0);
    }
    ExitCode::FAILURE
}
